#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Moves bytes between the ranks of a group. Every rank calls the same operations in the same
/// order.
///
/// One object belongs to one rank and is used by one thread at a time. An implementation whose
/// peers fail throws on every rank instead of hanging.
class Communicator {
 public:
  Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual ~Communicator() = default;

  [[nodiscard]] virtual int rank() const noexcept = 0;
  [[nodiscard]] virtual int size() const noexcept = 0;

  virtual void barrier() = 0;

  /// Gathers every rank's bytes in rank order on every rank.
  /// @param receive_bytes [size()] bytes that each rank contributes; sum = receive.size()
  /// @throws Error kInvalidArgument if send.size() != receive_bytes[rank()]
  virtual void all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                          std::span<const int64_t> receive_bytes) = 0;

  /// Copies root's bytes to every rank.
  virtual void broadcast(std::span<std::byte> data, int root) = 0;

  /// Replaces data by the element-wise f32 sum over ranks, added in rank order (rank 0 first), so
  /// that every rank gets the same bits.
  virtual void all_reduce_sum(std::span<float> data) = 0;

  /// Sends send[to] to each rank and receives into receive[from].
  /// @param send_bytes, receive_bytes [size()] with offsets being their prefix sums
  virtual void all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                          std::span<std::byte> receive, std::span<const int64_t> receive_bytes) = 0;

  /// Wakes every rank that waits in this group with an error that carries `reason`. Any thread.
  virtual void abort(const char* reason) noexcept = 0;
};

/// A group of one.
std::unique_ptr<Communicator> make_self_communicator();

/// Runs `body(communicator)` on `num_ranks` threads of this process, each with its own rank.
///
/// Returns when all have. An exception on one rank aborts the group; the exception of the lowest
/// rank that failed by itself (not by the abort) is rethrown.
void run_local_ranks(int num_ranks, const std::function<void(Communicator& communicator)>& body);

}  // namespace gantry
