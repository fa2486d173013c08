#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/export.h"

namespace gantry GANTRY_API {

struct TransferParts;

/// Bytes that go to one rank.
struct SendPart {
  int peer = 0;
  std::span<const std::byte> data{};
};

/// Bytes that come from one rank.
struct ReceivePart {
  int peer = 0;
  std::span<std::byte> data{};
};

/// How a group whose ranks are processes waits.
struct CommunicatorOptions {
  /// How long an operation may go without any progress (a message that completes) before it fails
  /// with kTimeout on every rank. Ranks that load at different speeds wait for each other, too.
  std::chrono::milliseconds timeout{60'000};
};

/// What a rank has moved so far; bytes that it keeps for itself do not count.
struct Traffic {
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
  int64_t operations = 0;
};

/// What a rank is woken with when another one failed: a consequence, not a cause. Its code is that
/// of the failure.
class GroupAborted : public Error {
 public:
  using Error::Error;
};

/// Moves bytes between the ranks of a group. Every rank calls the same operations in the same
/// order.
///
/// One object belongs to one rank and is used by one thread at a time. An implementation whose
/// peers fail throws on every rank instead of hanging: a rank that finds ranks in different
/// operations, or sizes that do not fit each other, aborts the group.
///
/// An implementation has two things to do: `exchange` (send and receive groups of parts) and
/// `wake_all` (the abort). Everything else is made of these, once for all.
class Communicator {
 public:
  Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator();

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;

  /// Returns when every rank has called it.
  void barrier();

  /// Gathers every rank's bytes in rank order on every rank.
  /// @param receive_bytes [size()] bytes that each rank contributes; sum = receive.size()
  /// @throws Error kInvalidArgument if send.size() != receive_bytes[rank()]
  void all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                  std::span<const int64_t> receive_bytes);

  /// Copies root's bytes to every rank.
  void broadcast(std::span<std::byte> data, int root);

  /// Replaces data by the element-wise f32 sum over ranks, added in rank order (rank 0 first), so
  /// that every rank gets the same bits: those of reduce_scatter_sum.
  void all_reduce_sum(std::span<float> data);

  /// Like all_reduce_sum with the transport's own algorithm, where it has one: the order of the
  /// additions is the transport's, and may differ between runs and sizes.
  void all_reduce_sum_native(std::span<float> data);

  /// Adds `send` over ranks element by element in f32, in rank order (rank 0 first), and gives each
  /// rank its part.
  /// @param counts  [size()] elements of each rank's part; sum = send.size()
  /// @param receive [counts[rank()]] written; must not overlap send
  void reduce_scatter_sum(std::span<const float> send, std::span<float> receive,
                          std::span<const int64_t> counts);

  /// Like reduce_scatter_sum by the transport's own reduction; see all_reduce_sum_native. What that
  /// moves is the transport's business and not in `traffic`.
  /// @throws Error kUnsupported unless has_native_reduction()
  void reduce_scatter_sum_native(std::span<const float> send, std::span<float> receive,
                                 std::span<const int64_t> counts);

  /// Whether the transport adds numbers itself: MPI does, threads do not.
  [[nodiscard]] virtual bool has_native_reduction() const noexcept { return false; }

  /// Sends send[to] to each rank and receives into receive[from].
  /// @param send_bytes, receive_bytes [size()] with offsets being their prefix sums
  void all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                  std::span<std::byte> receive, std::span<const int64_t> receive_bytes);

  /// A group of sends and receives between any ranks, all under way at once. Every rank of the
  /// group calls it, also one that has no part. The parts that rank a sends to rank b are received
  /// in the order in which they are listed, each with the size it was sent with. A rank may be its
  /// own peer. Memory of sends and receives must not overlap.
  void send_receive(std::span<const SendPart> sends, std::span<const ReceivePart> receives);

  /// Wakes every rank that waits in this group, or calls it later, with a GroupAborted that carries
  /// `reason` and `code`. Any thread.
  void abort(const char* reason, ErrorCode code = ErrorCode::kInternal) noexcept {
    wake_all(reason, code);
  }

  /// Looks for failures of other ranks without waiting: for who waits for something else (a GPU)
  /// that a failed rank would never bring. Not while an operation runs.
  /// @throws GroupAborted if the group was aborted
  void check_alive() { look_for_news(); }

  /// The operation that this rank is in ("all_to_all"), or null. Any thread, also a signal handler.
  [[nodiscard]] const char* current_operation() const noexcept {
    return current_.load(std::memory_order_relaxed);
  }
  /// Changes whenever an operation begins, ends, or (where ranks are processes) looks for news. One
  /// that stands still during an operation shows that the transport does not come back. Any thread.
  [[nodiscard]] uint64_t pulse() const noexcept { return pulse_.load(std::memory_order_relaxed); }
  /// Not while an operation runs.
  [[nodiscard]] const Traffic& traffic() const noexcept { return traffic_; }

 protected:
  /// What all ranks of one operation must agree on.
  struct Operation {
    const char* name = "";  ///< a string literal
    int root = 0;
  };

  /// Sends and receives between this rank and others (never itself), in the order of the list for
  /// each pair of ranks. Every rank of the group takes part in each, also with no parts.
  /// @throws Error kInvalidArgument on every rank if ranks are in different operations, or if part
  ///         sizes of sender and receiver differ
  virtual void exchange(const Operation& operation, std::span<const SendPart> sends,
                        std::span<const ReceivePart> receives) = 0;
  /// See abort().
  virtual void wake_all(const char* reason, ErrorCode code) noexcept = 0;
  /// See check_alive().
  virtual void look_for_news() {}
  /// @return false if the transport has no reduction of its own
  virtual bool reduce_natively(const Operation& operation, std::span<float> data);
  /// Only called if has_native_reduction(); sizes fit each other.
  virtual void reduce_scatter_natively(const Operation& operation, std::span<const float> send,
                                       std::span<float> receive, std::span<const int64_t> counts);

  /// See pulse().
  void beat() noexcept { pulse_.fetch_add(1, std::memory_order_relaxed); }

  /// Takes the group down with this rank's mistake, so that no peer waits for ever.
  [[noreturn]] void refuse(const std::string& message);

 private:
  class Scope;

  void check_sizes(const char* what, std::span<const int64_t> sizes, size_t total);
  void check_reduce_scatter(const char* what, std::span<const float> send, std::span<float> receive,
                            std::span<const int64_t> counts);
  void run(const Operation& operation, std::span<const SendPart> sends,
           std::span<const ReceivePart> receives);
  void reduce_scatter(const Operation& operation, std::span<const float> send,
                      std::span<float> receive, std::span<const int64_t> counts);
  void gather(const Operation& operation, std::span<const std::byte> send,
              std::span<std::byte> receive, std::span<const int64_t> receive_bytes);

  std::atomic<const char*> current_ = nullptr;
  std::atomic<uint64_t> pulse_ = 0;
  Traffic traffic_;
  // Kept between calls, so that a steady state allocates nothing.
  std::unique_ptr<TransferParts> parts_;   // of the operation
  std::unique_ptr<TransferParts> remote_;  // those that leave this rank
  std::vector<float> addends_;
  std::vector<float> own_part_;
  std::vector<int64_t> counts_;
  std::vector<int64_t> bytes_;
};

/// A group of one.
std::unique_ptr<Communicator> make_self_communicator();

/// Runs `body(communicator)` on `num_ranks` threads of this process, each with its own rank.
///
/// Returns when all have. An exception on one rank aborts the group; the exception of the lowest
/// rank that failed by itself (not by the abort) is rethrown.
void run_local_ranks(int num_ranks, const std::function<void(Communicator& communicator)>& body);

}  // namespace gantry
