// A GPU through the CUDA runtime, which is linked statically and looks for the driver only when it
// is first called: a program that never opens a GPU runs without one.

#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>

#include <array>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "kernels/cuda/cuda_current.cuh"
#include "kernels/cuda/cuda_errors.h"
#include "kernels/cuda/cuda_kernels.h"

namespace gantry {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

cudaStream_t stream_of(StreamHandle stream) { return static_cast<cudaStream_t>(stream); }

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index) : index_(index) {
    const CurrentGpu current(index);
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    std::array<char, 32> bus_id{};
    check_cuda(cudaDeviceGetPCIBusId(bus_id.data(), bus_id.size(), index), "cudaDeviceGetPCIBusId");
    attributes_ = {
        .name = properties.name,
        .bus_id = bus_id.data(),
        .index = index,
        .compute_capability = 10 * properties.major + properties.minor,
        .num_sms = properties.multiProcessorCount,
        .max_threads_per_block = properties.maxThreadsPerBlock,
        .shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
        .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem)};
    GANTRY_CHECK(attributes_.compute_capability >= 80, ErrorCode::kUnsupported,
                 "cuda:{}: {} has compute capability {}.{}, expected at least 8.0", index,
                 attributes_.name, properties.major, properties.minor);
  }

  [[nodiscard]] const DeviceAttributes& attributes() const noexcept override { return attributes_; }
  [[nodiscard]] const DeviceKernels& kernels() const noexcept override {
    return cuda_kernels(attributes_.compute_capability == 90);
  }

  void* allocate(size_t bytes) override {
    const CurrentGpu current(index_);
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
  }
  void release(void* memory) noexcept override { note(cudaFree(memory), "cudaFree"); }
  void* allocate_pinned(size_t bytes) override {
    const CurrentGpu current(index_);
    void* memory = nullptr;
    check_cuda(cudaMallocHost(&memory, bytes), "cudaMallocHost");
    return memory;
  }
  void release_pinned(void* memory) noexcept override {
    note(cudaFreeHost(memory), "cudaFreeHost");
  }

  StreamHandle create_stream() override {
    const CurrentGpu current(index_);
    cudaStream_t stream = nullptr;
    check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return stream;
  }
  void destroy_stream(StreamHandle stream) noexcept override {
    note(cudaStreamDestroy(stream_of(stream)), "cudaStreamDestroy");
  }
  void synchronize(StreamHandle stream) override {
    const CurrentGpu current(index_);
    check_cuda(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
  }
  bool idle(StreamHandle stream) override {
    const CurrentGpu current(index_);
    const cudaError_t status = cudaStreamQuery(stream_of(stream));
    if (status == cudaErrorNotReady) return false;
    check_cuda(status, "cudaStreamQuery");
    return true;
  }
  void make_current() override { check_cuda(cudaSetDevice(index_), "cudaSetDevice"); }
  void hand_over(StreamHandle /*stream*/) override {}

  EventHandle create_event() override {
    const CurrentGpu current(index_);
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreate(&event), "cudaEventCreate");
    return event;
  }
  void destroy_event(EventHandle event) noexcept override {
    note(cudaEventDestroy(static_cast<cudaEvent_t>(event)), "cudaEventDestroy");
  }
  void record(EventHandle event, StreamHandle stream) override {
    const CurrentGpu current(index_);
    check_cuda(cudaEventRecord(static_cast<cudaEvent_t>(event), stream_of(stream)),
               "cudaEventRecord");
  }
  void wait_for(EventHandle event, StreamHandle stream) override {
    const CurrentGpu current(index_);
    check_cuda(cudaStreamWaitEvent(stream_of(stream), static_cast<cudaEvent_t>(event), 0),
               "cudaStreamWaitEvent");
  }
  double elapsed_ms(EventHandle start, EventHandle end) override {
    const CurrentGpu current(index_);
    float ms = 0.0F;
    check_cuda(
        cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(start), static_cast<cudaEvent_t>(end)),
        "cudaEventElapsedTime");
    return ms;
  }

  GraphHandle capture(StreamHandle stream, const std::function<void()>& enqueue) override {
    const CurrentGpu current(index_);
    check_cuda(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      note(cudaStreamEndCapture(stream_of(stream), &graph), "cudaStreamEndCapture");
      if (graph != nullptr) note(cudaGraphDestroy(graph), "cudaGraphDestroy");
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream_of(stream), &graph), "cudaStreamEndCapture");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
    note(cudaGraphDestroy(graph), "cudaGraphDestroy");
    check_cuda(made, "cudaGraphInstantiate");
    return executable;
  }
  void launch_graph(GraphHandle graph, StreamHandle stream) override {
    const CurrentGpu current(index_);
    check_cuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)),
               "cudaGraphLaunch");
  }
  void destroy_graph(GraphHandle graph) noexcept override {
    note(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)), "cudaGraphExecDestroy");
  }

  void copy_in(void* device, const void* host, size_t bytes, StreamHandle stream) override {
    copy(device, host, bytes, cudaMemcpyHostToDevice, stream);
  }
  void copy_out(void* host, const void* device, size_t bytes, StreamHandle stream) override {
    copy(host, device, bytes, cudaMemcpyDeviceToHost, stream);
  }
  void copy_within(void* to, const void* from, size_t bytes, StreamHandle stream) override {
    copy(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
  }
  void clear(void* device, size_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    const CurrentGpu current(index_);
    check_cuda(cudaMemsetAsync(device, 0, bytes, stream_of(stream)), "cudaMemsetAsync");
  }

 private:
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, StreamHandle stream) {
    if (bytes == 0) return;
    const CurrentGpu current(index_);
    check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_of(stream)), "cudaMemcpyAsync");
  }

  static void note(cudaError_t status, const char* call) noexcept {
    if (status == cudaSuccess) return;
    log(LogLevel::kError, "{}: {}", call, cudaGetErrorString(status));
  }

  int index_;
  DeviceAttributes attributes_;
};

}  // namespace

void check_cuda(int status, const char* call) {
  const auto error = static_cast<cudaError_t>(status);
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // the error is told once, not again by the next call
  const ErrorCode code =
      error == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kCuda;
  fail(code, "{}: {} ({})", call, cudaGetErrorString(error), cudaGetErrorName(error));
}

void check_launch(const LaunchShape& shape, const DeviceAttributes& attributes) {
  const std::string problem = launch_problem(shape, attributes);
  GANTRY_CHECK(problem.empty(), ErrorCode::kUnsupported, "kernel launch: {}", problem);
}

std::shared_ptr<Device> open_cuda_device(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  GANTRY_CHECK(status != cudaErrorInsufficientDriver, ErrorCode::kCuda,
               "cuda:{}: no CUDA driver here, or one older than CUDA {}.{}", index,
               CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
  GANTRY_CHECK(status != cudaErrorNoDevice && (status != cudaSuccess || count > 0),
               ErrorCode::kCuda, "cuda:{}: there is a CUDA driver, but no GPU", index);
  check_cuda(status, "cudaGetDeviceCount");
  GANTRY_CHECK(index < count && index < kMostGpus, ErrorCode::kInvalidArgument,
               "cuda:{}: there are {} GPUs", index, count);
  return std::make_shared<CudaDevice>(index);
}

}  // namespace gantry
