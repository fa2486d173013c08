#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/cuda/device.h"
#include "parallel/communicator.h"

namespace gantry GANTRY_API {

/// How values are added over ranks.
enum class SumOrder : uint8_t {
  kRank,    ///< in rank order, rank 0 first: the same bits on every rank, transport and size
  kNative,  ///< by the transport's own algorithm, whose order may differ between runs and sizes
};

std::string_view to_string(SumOrder order) noexcept;
/// "rank", "native". @throws Error kInvalidArgument
SumOrder parse_sum_order(std::string_view name);

/// Moves bytes between the memories of the ranks' devices: Communicator with streams. Spans are
/// memory of the device, which the host never reads.
///
/// Operations are enqueued on the stream; what is on it before them is done first, what comes after
/// them sees their result. They return when the transport has taken them (which may be only when
/// they are done: see `waits`); `wait` returns when the stream has done them, or throws. Every rank
/// calls the same operations in the same order.
///
/// No wait is for ever. A rank that fails or waits longer than the time-out throws and takes the
/// group down; the others throw GroupAborted as soon as they hear of it, at the latest after their
/// time-out. A group that failed is dead.
///
/// One object belongs to one rank and is used by one thread at a time (`abort`: any thread).
///
/// An implementation has `exchange` and `wake_all`, as those of Communicator do, and may have
/// collectives of its own.
class DeviceCommunicator {
 public:
  DeviceCommunicator(std::shared_ptr<Device> device, const CommunicatorOptions& options);
  DeviceCommunicator(const DeviceCommunicator&) = delete;
  DeviceCommunicator& operator=(const DeviceCommunicator&) = delete;
  virtual ~DeviceCommunicator();

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;
  /// What carries the bytes: "NCCL 2.28.9 (/usr/lib/libnccl.so.2)".
  [[nodiscard]] virtual std::string description() const = 0;
  /// Whether operations wait for the stream, so that they cannot be captured into a graph.
  [[nodiscard]] virtual bool waits() const noexcept = 0;
  [[nodiscard]] const std::shared_ptr<Device>& device() const noexcept { return device_; }

  /// Returns when every rank has called it and the stream is done.
  void barrier(StreamHandle stream);
  /// Gathers every rank's bytes in rank order on every rank. `send` may be this rank's part of
  /// `receive`.
  /// @param receive_bytes [size()] bytes that each rank contributes; sum = receive.size()
  void all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                  std::span<const int64_t> receive_bytes, StreamHandle stream);
  void broadcast(std::span<std::byte> data, int root, StreamHandle stream);
  /// Sends send[to] to each rank and receives into receive[from]; offsets are prefix sums.
  void all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                  std::span<std::byte> receive, std::span<const int64_t> receive_bytes,
                  StreamHandle stream);
  /// See Communicator::send_receive.
  void send_receive(std::span<const SendPart> sends, std::span<const ReceivePart> receives,
                    StreamHandle stream);
  /// Replaces data by the element-wise f32 sum over ranks.
  void all_reduce_sum(std::span<float> data, SumOrder order, StreamHandle stream);
  /// Adds `send` over ranks and gives each rank its part.
  /// @param counts  [size()] elements of each rank's part; sum = send.size()
  /// @param receive [counts[rank()]] written; must not overlap send
  void reduce_scatter_sum(std::span<const float> send, std::span<float> receive,
                          std::span<const int64_t> counts, SumOrder order, StreamHandle stream);

  /// Makes room for sums in rank order over vectors of up to `count` values, so that they allocate
  /// nothing (and can be captured). Without it they allocate when they grow.
  void reserve_sums(int64_t count);

  /// Waits for everything on the stream, at most as long as the time-out.
  /// @throws Error kTimeout (this rank waited in vain), kCuda, kNccl; GroupAborted
  void wait(StreamHandle stream);

  /// Wakes every rank that waits in this group, or calls it later. Any thread.
  void abort(const char* reason, ErrorCode code = ErrorCode::kInternal) noexcept {
    wake_all(reason, code);
  }

  /// The operation that this rank is in, or null. Any thread.
  [[nodiscard]] const char* current_operation() const noexcept {
    return current_.load(std::memory_order_relaxed);
  }
  [[nodiscard]] const Traffic& traffic() const noexcept { return traffic_; }

 protected:
  using Clock = std::chrono::steady_clock;

  /// Sends and receives between this rank and others (never itself), in the order of the list for
  /// each pair of ranks. Every rank of the group takes part in each, also with no parts.
  virtual void exchange(std::span<const SendPart> sends, std::span<const ReceivePart> receives,
                        StreamHandle stream) = 0;
  /// See abort().
  virtual void wake_all(const char* reason, ErrorCode code) noexcept = 0;
  /// Throws if the group failed; called while this rank waits for a stream.
  virtual void check_alive() = 0;
  /// Takes the group down as this rank's failure.
  [[noreturn]] virtual void fail_group(ErrorCode code, const std::string& message) = 0;
  /// Gathers equal parts. @return false if the transport has no such operation
  virtual bool gather_evenly(std::span<const std::byte> send, std::span<std::byte> receive,
                             StreamHandle stream);
  /// The transport's own sum of everything on all ranks, in place. @return false if it has none
  virtual bool all_reduce_natively(std::span<float> data, StreamHandle stream);
  /// The transport's own sum of parts. @return false if it has none
  virtual bool reduce_scatter_natively(std::span<const float> send, std::span<float> receive,
                                       std::span<const int64_t> counts, StreamHandle stream);

  [[nodiscard]] const CommunicatorOptions& options() const noexcept { return options_; }
  /// The name of the operation that runs, for messages.
  [[nodiscard]] const char* operation_name() const noexcept;

 private:
  class Scope;

  void refuse(const std::string& message);  // throws
  void check_sizes(const char* what, std::span<const int64_t> sizes, size_t total);
  void run(std::span<const SendPart> sends, std::span<const ReceivePart> receives,
           StreamHandle stream);
  void gather(std::span<const std::byte> send, std::span<std::byte> receive,
              std::span<const int64_t> receive_bytes, StreamHandle stream);
  void sum_parts(std::span<const float> send, std::span<float> receive,
                 std::span<const int64_t> counts, StreamHandle stream);
  float* addends(size_t count);
  void count_traffic(int64_t sent, int64_t received) noexcept;

  std::shared_ptr<Device> device_;
  CommunicatorOptions options_;
  std::atomic<const char*> current_ = nullptr;
  Traffic traffic_;
  DeviceBuffer addends_;
  std::unique_ptr<TransferParts> parts_;   // of the operation
  std::unique_ptr<TransferParts> remote_;  // those that leave this rank
  std::vector<int64_t> counts_;
  std::vector<int64_t> bytes_;
};

/// Carries device memory over host memory: copied out, moved by `host`, copied in. For ranks that
/// share a GPU, which NCCL does not do, and for machines where NCCL does not work. Waits for the
/// stream in every operation. Sums in native order are those of `host`.
/// @param host outlives the result; no operation of its own may run at the same time
std::unique_ptr<DeviceCommunicator> make_host_staged_communicator(
    Communicator& host, std::shared_ptr<Device> device, const CommunicatorOptions& options);

}  // namespace gantry
