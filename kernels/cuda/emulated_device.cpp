// A device whose memory is the host's and whose kernels run on emulated threads.

#include <cstdlib>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/cuda/emulated_block.h"
#include "kernels/cuda/gemm_launches.h"

namespace gantry {
namespace {

struct EmulatedBackend {
  template <class Kernel>
  static void launch(const Kernel& kernel, const LaunchShape& shape,
                     const DeviceAttributes& attributes, StreamHandle stream) {
    const std::string problem = launch_problem(shape, attributes);
    GANTRY_CHECK(problem.empty(), ErrorCode::kInternal, "emulated launch: {}", problem);
    // The stream is the device's seed: its kernels run at once, in an order of their own.
    run_emulated(shape, stream == nullptr ? 1 : *static_cast<const uint64_t*>(stream),
                 [&kernel](EmulatedMachine& m) { kernel.run(m); });
  }
};

const DeviceKernels& emulated_kernels() {
  using B = EmulatedBackend;
  static const DeviceKernels kKernels = device_kernels<B>(
      {gemm_launches<B, DeviceElement::kBF16>(), gemm_launches<B, DeviceElement::kF16>(),
       gemm_launches<B, DeviceElement::kE4M3>(), gemm_launches<B, DeviceElement::kInt8>(),
       gemm_launches<B, DeviceElement::kInt4>(), gemm_launches<B, DeviceElement::kE2M1>()});
  return kKernels;
}

class EmulatedDevice final : public Device {
 public:
  explicit EmulatedDevice(uint64_t seed) : seed_(seed) {
    // The smallest of the GPUs that the kernels must run on: sm_86.
    attributes_ = {.name = "emulated sm_86",
                   .bus_id = "",
                   .compute_capability = 86,
                   .num_sms = 1,
                   .max_threads_per_block = 1024,
                   .shared_bytes_per_block = 99 << 10,
                   .memory_bytes = 0};
  }

  [[nodiscard]] const DeviceAttributes& attributes() const noexcept override { return attributes_; }
  [[nodiscard]] const DeviceKernels& kernels() const noexcept override {
    return emulated_kernels();
  }

  // Bytes are set as no number is: what a kernel reads before it is written shows.
  void* allocate(size_t bytes) override {
    void* memory =
        std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    GANTRY_CHECK(memory != nullptr, ErrorCode::kOutOfMemory, "emulated device: {} bytes", bytes);
    std::memset(memory, 0xff, bytes);
    return memory;
  }
  void release(void* memory) noexcept override { std::free(memory); }
  void* allocate_pinned(size_t bytes) override { return allocate(bytes); }
  void release_pinned(void* memory) noexcept override { std::free(memory); }
  StreamHandle create_stream() override { return &seed_; }
  void destroy_stream(StreamHandle) noexcept override {}
  void synchronize(StreamHandle) override {}
  bool idle(StreamHandle) override { return true; }
  void make_current() override {}
  // Kept as it is: what it refers to must live as long as the graph, as on a GPU.
  GraphHandle capture(StreamHandle, const std::function<void()>& enqueue) override {
    return new std::function<void()>(enqueue);
  }
  void launch_graph(GraphHandle graph, StreamHandle) override {
    (*static_cast<std::function<void()>*>(graph))();
  }
  void destroy_graph(GraphHandle graph) noexcept override {
    delete static_cast<std::function<void()>*>(graph);
  }
  void copy_in(void* device, const void* host, size_t bytes, StreamHandle) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void copy_out(void* host, const void* device, size_t bytes, StreamHandle) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  void copy_within(void* to, const void* from, size_t bytes, StreamHandle) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void clear(void* device, size_t bytes, StreamHandle) override {
    if (bytes > 0) std::memset(device, 0, bytes);
  }

 private:
  static constexpr size_t kAlignment = 256;
  uint64_t seed_;
  DeviceAttributes attributes_;
};

}  // namespace

std::shared_ptr<Device> open_emulated_device(uint64_t seed) {
  return std::make_shared<EmulatedDevice>(seed);
}

}  // namespace gantry
