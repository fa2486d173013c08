// A device whose memory is the host's and whose kernels run on emulated threads, when the host
// waits for them.

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/cuda/emulated_block.h"
#include "kernels/cuda/emulated_streams.h"
#include "kernels/cuda/gemm_launches.h"
#include "kernels/cuda/wgmma_launches.h"

namespace gantry {
namespace {

/// What a StreamHandle of an emulated device points to; null is nobody's.
struct EmulatedStream {
  EmulatedStreams* streams;
  EmulatedStreams::Stream* stream;
  uint64_t seed;
};

struct EmulatedBackend {
  template <class Kernel>
  static void launch(const Kernel& kernel, const LaunchShape& shape,
                     const DeviceAttributes& attributes, const StreamPlace& place) {
    const std::string problem = launch_problem(shape, attributes);
    GANTRY_CHECK(problem.empty(), ErrorCode::kInternal, "emulated launch: {}", problem);
    const auto run = [kernel, shape](uint64_t seed) {
      run_emulated(shape, seed, [&kernel](EmulatedMachine& m) { kernel.run(m); });
    };
    const auto* stream = static_cast<const EmulatedStream*>(place.handle);
    if (stream == nullptr) {  // the null stream: kernels run at once
      run(1);
      return;
    }
    const uint64_t seed = stream->seed;
    stream->streams->kernel(stream->stream, place.after_kernel, [run, seed] { run(seed); });
  }
};

template <DeviceElement... kElements>
DeviceKernels make_kernels(bool sm90a) {
  using B = EmulatedBackend;
  DeviceKernels kernels = device_kernels<B>({gemm_launches<B, kElements>()...},
                                            gemm_launches<B, DeviceElement::kE4M3, true>());
  if (sm90a) {
    (add_wgmma(kElements, wgmma_launches<B, kElements>(), kernels), ...);
    add_wgmma_peaks<B>(kernels);
  }
  return kernels;
}

const DeviceKernels& emulated_kernels(bool sm90a) {
  using E = DeviceElement;
  static const std::array<DeviceKernels, 2> kKernels = {
      make_kernels<E::kBF16, E::kF16, E::kE4M3, E::kInt8, E::kInt4, E::kE2M1>(false),
      make_kernels<E::kBF16, E::kF16, E::kE4M3, E::kInt8, E::kInt4, E::kE2M1>(true)};
  return kKernels[sm90a ? 1 : 0];
}

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(uint64_t seed, int compute_capability) : streams_(seed), seed_(seed) {
    const bool hopper = compute_capability == 90;
    GANTRY_CHECK(hopper || compute_capability == 86, ErrorCode::kInvalidArgument,
                 "emulated device: expected compute capability 86 or 90, found {}",
                 compute_capability);
    // sm_86 is the smallest of the GPUs that the kernels must run on.
    attributes_ = {.name = hopper ? "emulated sm_90a" : "emulated sm_86",
                   .bus_id = "",
                   .compute_capability = compute_capability,
                   .num_sms = hopper ? 2 : 1,
                   .max_threads_per_block = 1024,
                   .shared_bytes_per_block = (hopper ? 227 : 99) << 10,
                   .memory_bytes = 0};
  }

  [[nodiscard]] const DeviceAttributes& attributes() const noexcept override { return attributes_; }
  [[nodiscard]] const DeviceKernels& kernels() const noexcept override {
    return emulated_kernels(attributes_.compute_capability == 90);
  }

  // Bytes are set as no number is: what a kernel reads before it is written shows.
  void* allocate(size_t bytes) override {
    void* memory =
        std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    GANTRY_CHECK(memory != nullptr, ErrorCode::kOutOfMemory, "emulated device: {} bytes", bytes);
    std::memset(memory, 0xff, bytes);
    return memory;
  }
  // As cudaFree does, after everything that was enqueued.
  void release(void* memory) noexcept override {
    try {
      streams_.drain();
    } catch (const std::exception&) {  // whoever synchronises is told
    }
    std::free(memory);
  }
  void* allocate_pinned(size_t bytes) override {
    void* memory = allocate(bytes);
    const std::lock_guard lock(mutex_);
    pinned_[static_cast<const std::byte*>(memory)] = bytes;
    return memory;
  }
  void release_pinned(void* memory) noexcept override {
    {
      const std::lock_guard lock(mutex_);
      pinned_.erase(static_cast<const std::byte*>(memory));
    }
    release(memory);
  }

  StreamHandle create_stream() override {
    return new EmulatedStream{&streams_, streams_.create(), seed_};
  }
  void destroy_stream(StreamHandle stream) noexcept override {
    try {
      streams_.destroy(queue(stream));
    } catch (const std::exception&) {
    }
    delete static_cast<EmulatedStream*>(stream);
  }
  void synchronize(StreamHandle stream) override { streams_.synchronize(queue(stream)); }
  bool idle(StreamHandle stream) override {
    synchronize(stream);
    return true;
  }
  void make_current() override {}
  void hand_over(StreamHandle stream) override { synchronize(stream); }

  EventHandle create_event() override { return new std::shared_ptr(new_event()); }
  void destroy_event(EventHandle event) noexcept override { delete &event_of(event); }
  // A new moment: who waits already waits for the one before.
  void record(EventHandle event, StreamHandle stream) override {
    event_of(event) = new_event();
    streams_.record(queue(stream), event_of(event));
  }
  void wait_for(EventHandle event, StreamHandle stream) override {
    streams_.wait_for(queue(stream), event_of(event));
  }
  double elapsed_ms(EventHandle start, EventHandle end) override {
    GANTRY_CHECK(event_of(start)->reached && event_of(end)->reached, ErrorCode::kInternal,
                 "emulated device: elapsed_ms of events that were not reached");
    return event_of(end)->ms - event_of(start)->ms;
  }

  GraphHandle capture(StreamHandle stream, const std::function<void()>& enqueue) override {
    GANTRY_CHECK(stream != nullptr, ErrorCode::kInternal,
                 "emulated device: the null stream cannot be captured");
    return streams_.capture(queue(stream), enqueue).release();
  }
  void launch_graph(GraphHandle graph, StreamHandle stream) override {
    streams_.launch(queue(stream), *static_cast<EmulatedStreams::Graph*>(graph));
  }
  void destroy_graph(GraphHandle graph) noexcept override {
    try {
      streams_.drain();
    } catch (const std::exception&) {
    }
    delete static_cast<EmulatedStreams::Graph*>(graph);
  }

  // Pageable memory is read before the call returns, pinned memory when the stream comes to it.
  void copy_in(void* device, const void* host, size_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    const auto* begin = static_cast<const std::byte*>(host);
    if (is_pinned(begin)) {
      streams_.enqueue(queue(stream), [device, host, bytes] { std::memcpy(device, host, bytes); });
    } else {
      streams_.enqueue(queue(stream),
                       [device, copy = std::vector<std::byte>(begin, begin + bytes)] {
                         std::memcpy(device, copy.data(), copy.size());
                       });
    }
    if (stream == nullptr) streams_.synchronize(nullptr);
  }
  void copy_out(void* host, const void* device, size_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    streams_.enqueue(queue(stream), [host, device, bytes] { std::memcpy(host, device, bytes); });
  }
  void copy_within(void* to, const void* from, size_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    streams_.enqueue(queue(stream), [to, from, bytes] { std::memcpy(to, from, bytes); });
  }
  void clear(void* device, size_t bytes, StreamHandle stream) override {
    if (bytes == 0) return;
    streams_.enqueue(queue(stream), [device, bytes] { std::memset(device, 0, bytes); });
    if (stream == nullptr) streams_.synchronize(nullptr);
  }

 private:
  static constexpr size_t kAlignment = 256;

  [[nodiscard]] bool is_pinned(const std::byte* address) const {
    const std::lock_guard lock(mutex_);
    const auto after = pinned_.upper_bound(address);
    if (after == pinned_.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return address < begin + bytes;
  }
  static EmulatedStreams::Stream* queue(StreamHandle stream) {
    return stream == nullptr ? nullptr : static_cast<EmulatedStream*>(stream)->stream;
  }
  static std::shared_ptr<EmulatedStreams::Event> new_event() {
    return std::make_shared<EmulatedStreams::Event>();
  }
  static std::shared_ptr<EmulatedStreams::Event>& event_of(EventHandle event) {
    return *static_cast<std::shared_ptr<EmulatedStreams::Event>*>(event);
  }

  EmulatedStreams streams_;
  mutable std::mutex mutex_;  // of pinned_
  std::map<const std::byte*, size_t> pinned_;
  uint64_t seed_;
  DeviceAttributes attributes_;
};

}  // namespace

std::shared_ptr<Device> open_emulated_device(uint64_t seed, int compute_capability) {
  return std::make_shared<EmulatedDevice>(seed, compute_capability);
}

}  // namespace gantry
