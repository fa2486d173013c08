#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

struct DeviceKernels;

/// A CUDA stream (`cudaStream_t`), without its header; null is the default stream. Always the
/// caller's: nothing here makes streams of its own unless told to.
using StreamHandle = void*;
/// Where a kernel is launched: a stream, and whether what was put there last is a kernel, so that
/// the two launches may overlap (programmatic dependent launch).
struct StreamPlace {
  StreamPlace(StreamHandle stream, bool follows_kernel = false)  // NOLINT: a stream is a place
      : handle(stream), after_kernel(follows_kernel) {}
  StreamHandle handle;
  bool after_kernel;
};
/// A moment of a stream (`cudaEvent_t`).
using EventHandle = void*;
/// A CUDA graph that can be launched (`cudaGraphExec_t`).
using GraphHandle = void*;

/// What kernels and their launches depend on.
struct DeviceAttributes {
  std::string name;
  std::string bus_id{};        ///< which GPU of the host it is, or empty: none
  int index = 0;               ///< the N of cuda:N
  int compute_capability = 0;  ///< 10 * major + minor: 90 for Hopper
  int num_sms = 0;
  int max_threads_per_block = 0;
  int64_t shared_bytes_per_block = 0;  ///< that a block may have by opting in
  int64_t memory_bytes = 0;
};

/// One GPU, or its emulation on the host: memory, copies, kernels. Everything with a stream is
/// enqueued and returns at once (the emulation runs it first); the caller synchronises.
///
/// Threads: safe to use from several threads at once, streams apart.
class Device {
 public:
  virtual ~Device() = default;
  [[nodiscard]] virtual const DeviceAttributes& attributes() const noexcept = 0;
  [[nodiscard]] virtual const DeviceKernels& kernels() const noexcept = 0;

  /// Memory of the device, aligned to 256 bytes, not initialised.
  /// @throws Error kOutOfMemory
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  /// Host memory that copies to and from the device overlap with.
  virtual void* allocate_pinned(size_t bytes) = 0;
  virtual void release_pinned(void* memory) noexcept = 0;

  virtual StreamHandle create_stream() = 0;
  virtual void destroy_stream(StreamHandle stream) noexcept = 0;
  /// Waits for everything on the stream. @throws Error kCuda if something of it failed
  virtual void synchronize(StreamHandle stream) = 0;
  /// Whether everything on the stream is done; never waits.
  /// @throws Error kCuda if something of it failed
  virtual bool idle(StreamHandle stream) = 0;
  /// Makes this the GPU that libraries called from this thread work on.
  virtual void make_current() = 0;
  /// Before another library enqueues on the stream. An emulated device, whose streams no library
  /// knows, does now what is on it; a GPU does nothing.
  virtual void hand_over(StreamHandle stream) = 0;

  virtual EventHandle create_event() = 0;
  virtual void destroy_event(EventHandle event) noexcept = 0;
  /// The event is reached when everything put on the stream before it is done.
  virtual void record(EventHandle event, StreamHandle stream) = 0;
  /// What is put on the stream from now on waits for the event (as it was recorded last).
  virtual void wait_for(EventHandle event, StreamHandle stream) = 0;
  /// Milliseconds between two events that have been reached.
  virtual double elapsed_ms(EventHandle start, EventHandle end) = 0;

  /// Records what `enqueue` puts on the stream, and on streams that wait for it, without running
  /// it.
  virtual GraphHandle capture(StreamHandle stream, const std::function<void()>& enqueue) = 0;
  virtual void launch_graph(GraphHandle graph, StreamHandle stream) = 0;
  virtual void destroy_graph(GraphHandle graph) noexcept = 0;

  virtual void copy_in(void* device, const void* host, size_t bytes, StreamHandle stream) = 0;
  virtual void copy_out(void* host, const void* device, size_t bytes, StreamHandle stream) = 0;
  /// Between two places of the device's memory, which must not overlap.
  virtual void copy_within(void* to, const void* from, size_t bytes, StreamHandle stream) = 0;
  virtual void clear(void* device, size_t bytes, StreamHandle stream) = 0;
};

/// The GPU that a name means: "cuda" or "cuda:N", or "emulated" (a small sm_86) or "emulated:90":
/// the same kernels with their threads emulated on the host, for machines without a GPU (slow; for
/// tests).
/// @throws Error kInvalidArgument for another name or a number that no GPU has
/// @throws Error kCuda if there is no driver or no GPU, or this build has no CUDA
std::shared_ptr<Device> open_device(std::string_view name);

/// Emulates kernels; `seed` shuffles the order in which threads and streams run.
/// @param compute_capability 86 (99 KB of shared memory) or 90 (227 KB, wgmma)
std::shared_ptr<Device> open_emulated_device(uint64_t seed = 1, int compute_capability = 86);

/// Owns memory of a device.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  /// @throws Error kOutOfMemory
  DeviceBuffer(std::shared_ptr<Device> device, size_t bytes)
      : device_(std::move(device)), bytes_(bytes) {
    if (bytes_ > 0) data_ = static_cast<std::byte*>(device_->allocate(bytes_));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { swap(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() {
    if (data_ != nullptr) device_->release(data_);
  }

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] size_t size() const noexcept { return bytes_; }
  template <typename T>
  [[nodiscard]] T* as() const noexcept {
    return reinterpret_cast<T*>(data_);
  }
  void swap(DeviceBuffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

 private:
  std::shared_ptr<Device> device_;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Owns pinned host memory.
class PinnedBuffer {
 public:
  PinnedBuffer(std::shared_ptr<Device> device, size_t bytes)
      : device_(std::move(device)),
        data_(static_cast<std::byte*>(device_->allocate_pinned(bytes))),
        bytes_(bytes) {}
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { device_->release_pinned(data_); }
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] size_t size() const noexcept { return bytes_; }

 private:
  std::shared_ptr<Device> device_;
  std::byte* data_;
  size_t bytes_;
};

/// Owns a stream.
class OwnedStream {
 public:
  explicit OwnedStream(std::shared_ptr<Device> device)
      : device_(std::move(device)), handle_(device_->create_stream()) {}
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
  ~OwnedStream() { device_->destroy_stream(handle_); }
  [[nodiscard]] StreamHandle handle() const noexcept { return handle_; }

 private:
  std::shared_ptr<Device> device_;
  StreamHandle handle_;
};

/// Owns an event.
class OwnedEvent {
 public:
  explicit OwnedEvent(std::shared_ptr<Device> device)
      : device_(std::move(device)), handle_(device_->create_event()) {}
  OwnedEvent(const OwnedEvent&) = delete;
  OwnedEvent& operator=(const OwnedEvent&) = delete;
  ~OwnedEvent() { device_->destroy_event(handle_); }
  [[nodiscard]] EventHandle handle() const noexcept { return handle_; }

 private:
  std::shared_ptr<Device> device_;
  EventHandle handle_;
};

/// Owns a graph.
class OwnedGraph {
 public:
  OwnedGraph(std::shared_ptr<Device> device, StreamHandle stream,
             const std::function<void()>& enqueue)
      : device_(std::move(device)), handle_(device_->capture(stream, enqueue)) {}
  OwnedGraph(const OwnedGraph&) = delete;
  OwnedGraph& operator=(const OwnedGraph&) = delete;
  ~OwnedGraph() { device_->destroy_graph(handle_); }
  void launch(StreamHandle stream) const { device_->launch_graph(handle_, stream); }

 private:
  std::shared_ptr<Device> device_;
  GraphHandle handle_;
};

}  // namespace gantry
