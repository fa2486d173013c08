#pragma once

// The groups of sends and receives that collectives are made of, for memory of any kind: nothing
// here reads or writes what the parts point to. Internal.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace gantry {

/// Up to this many bytes every rank sums everything: one round of messages instead of two.
inline constexpr size_t kSumEverywhereBytes = size_t{16} << 10;

/// A rank as an index.
[[nodiscard]] constexpr size_t index(int rank) noexcept { return static_cast<size_t>(rank); }

/// What one rank sends and receives in one group. Kept between calls, so that a steady state
/// allocates nothing.
struct TransferParts {
  std::vector<SendPart> sends;
  std::vector<ReceivePart> receives;

  /// `send` to everyone, `receive_bytes[r]` bytes from rank r, in rank order.
  void set_all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                      std::span<const int64_t> receive_bytes);
  void set_broadcast(std::span<std::byte> data, int root, int rank, int size);
  void set_all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                      std::span<std::byte> receive, std::span<const int64_t> receive_bytes);
  /// Everyone's addends of this rank's part: rank r's go to row r of `rows` [size, own].
  /// @param counts elements of each rank's part of `send`
  void set_reduce_scatter(std::span<const float> send, std::span<const int64_t> counts,
                          std::span<float> rows, size_t own);

  /// Without the parts that `rank` sends to itself; those are given to `copy`.
  /// @param bytes_sent, bytes_received to and from others
  /// @return what is wrong with the parts ("sends to rank 5 of 4"), or nothing
  std::string take_remote(std::span<const SendPart> all_sends,
                          std::span<const ReceivePart> all_receives, int rank, int size,
                          const std::function<void(const SendPart&, const ReceivePart&)>& copy,
                          int64_t& bytes_sent, int64_t& bytes_received);
};

/// Why `sizes` do not cut a buffer of `total` into `count` parts, or nothing.
std::string size_problem(std::span<const int64_t> sizes, size_t count, size_t total);

}  // namespace gantry
