#pragma once

// Internal: what a communicator over MPI shares with MPI itself, and what goes over the wire.

#include <mpi.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/mpi_control.h"

namespace gantry {

/// What ranks compare in front of every message: 64 bytes.
struct FrameHeader {
  static constexpr uint32_t kMagic = 0x47535431;

  uint32_t magic = kMagic;
  int32_t root = 0;
  int64_t sequence = 0;  // operations so far
  int64_t bytes = 0;     // to the receiver, all parts
  int64_t parts = 0;
  std::array<char, 32> operation{};  // ends with 0
};
static_assert(sizeof(FrameHeader) == 64);

/// One for each pair of ranks and operation; holds small payloads itself.
struct Frame {
  static constexpr size_t kBytes = 2048;
  static constexpr size_t kInlineBytes = kBytes - sizeof(FrameHeader);

  FrameHeader header;
  std::array<std::byte, kInlineBytes> payload;
};
static_assert(sizeof(Frame) == Frame::kBytes);

/// One MPI request and what to check when it is done.
struct Pending {
  enum Kind : uint8_t { kSend, kFrame, kPart, kReduction };
  Kind kind = kSend;
  int peer = -1;
  int bytes = 0;  // of kPart
};

/// Everything that MPI may hold a pointer to.
struct MpiLink {
  MPI_Comm comm = MPI_COMM_NULL;
  std::unique_ptr<MpiControl> control;
  std::vector<Frame> sent;      // [size]
  std::vector<Frame> received;  // [size]
  std::vector<MPI_Request> requests;
  std::vector<Pending> pending;  // of each request

  MPI_Request* add(Pending what) {
    pending.push_back(what);
    requests.push_back(MPI_REQUEST_NULL);
    return &requests.back();
  }
  [[nodiscard]] bool all_done() const noexcept;
  /// The ranks with requests that are not done.
  [[nodiscard]] std::vector<int> silent_peers() const;
  /// Cancels what can be cancelled, so that MPI forgets the caller's memory as far as it can, and
  /// waits a moment for the rest.
  void cancel() noexcept;
};

/// Keeps a link of a group that failed for ever, where leak checkers find it.
void leave_behind(std::unique_ptr<MpiLink> link) noexcept;

/// A duplicate of `comm` that returns errors, made without a wait that could last for ever.
/// @throws Error kMpi, kTimeout
MPI_Comm duplicate(MPI_Comm comm, const CommunicatorOptions& options);

}  // namespace gantry
