#pragma once

// Internal: what ranks tell each other outside of operations.

#include <mpi.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/error.h"

namespace gantry {

/// @throws Error kMpi with MPI's text unless `code` is MPI_SUCCESS
void check_mpi(int code, const char* call);

/// One message. Plain bytes: all ranks are of the same build, which they check first of all.
struct ControlMessage {
  enum Kind : int32_t { kAbort, kLeave };

  Kind kind = kAbort;
  ErrorCode code = ErrorCode::kInternal;  // of kAbort
  int64_t operations = 0;                 // of kLeave: as many has the rank taken part in
  std::array<char, 480> reason{};         // of kAbort, ends with 0
};

/// Sends and receives control messages over a tag of its own. Not thread-safe.
class MpiControl {
 public:
  static constexpr int kTag = 3;

  MpiControl(MPI_Comm comm, int rank, int size);
  MpiControl(const MpiControl&) = delete;
  MpiControl& operator=(const MpiControl&) = delete;

  /// Sends to every other rank and waits until MPI has taken the messages, at most `patience`.
  /// Errors are ignored: there is nobody left to tell.
  void send_to_all(const ControlMessage& message, std::chrono::milliseconds patience) noexcept;

  /// The next abort that has come, if any. Ranks that left are noted.
  /// @throws Error kMpi
  std::optional<ControlMessage> poll();

  /// Operations that a rank took part in before it left, or -1: it is still here.
  [[nodiscard]] int64_t operations_before_leaving(int rank) const {
    return left_[static_cast<size_t>(rank)];
  }
  [[nodiscard]] bool all_others_left() const noexcept { return num_left_ == size_ - 1; }

  /// Stops listening, so that the MPI_Comm can be freed.
  void close() noexcept;

 private:
  void listen();

  MPI_Comm comm_;
  int rank_;
  int size_;
  int num_left_ = 0;
  std::vector<int64_t> left_;
  ControlMessage received_;
  ControlMessage sent_;
  MPI_Request listening_ = MPI_REQUEST_NULL;
  std::vector<MPI_Request> sends_;
};

}  // namespace gantry
