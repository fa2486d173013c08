#include "parallel/mpi_control.h"

#include <fmt/format.h>

#include <thread>

namespace gantry {

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw Error(ErrorCode::kMpi, fmt::format("{}: {}", call, text.data()));
}

MpiControl::MpiControl(MPI_Comm comm, int rank, int size)
    : comm_(comm), rank_(rank), size_(size), left_(static_cast<size_t>(size), -1) {
  listen();
}

void MpiControl::listen() {
  check_mpi(
      MPI_Irecv(&received_, sizeof(received_), MPI_BYTE, MPI_ANY_SOURCE, kTag, comm_, &listening_),
      "MPI_Irecv");
}

void MpiControl::send_to_all(const ControlMessage& message,
                             std::chrono::milliseconds patience) noexcept {
  sent_ = message;
  sends_.clear();
  try {
    sends_.reserve(static_cast<size_t>(size_));
  } catch (...) {
    return;  // without memory nobody is told; their time-out remains
  }
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    if (MPI_Isend(&sent_, sizeof(sent_), MPI_BYTE, peer, kTag, comm_, &request) == MPI_SUCCESS) {
      sends_.push_back(request);
    }
  }
  const auto end = std::chrono::steady_clock::now() + patience;
  int done = 0;
  while (MPI_Testall(static_cast<int>(sends_.size()), sends_.data(), &done, MPI_STATUSES_IGNORE) ==
             MPI_SUCCESS &&
         done == 0 && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
}

std::optional<ControlMessage> MpiControl::poll() {
  for (;;) {
    int done = 0;
    MPI_Status status;
    check_mpi(MPI_Test(&listening_, &done, &status), "MPI_Test");
    if (done == 0) return std::nullopt;
    const ControlMessage message = received_;
    listen();
    if (message.kind == ControlMessage::kAbort) return message;
    left_[static_cast<size_t>(status.MPI_SOURCE)] = message.operations;
    ++num_left_;
  }
}

void MpiControl::close() noexcept {
  if (listening_ == MPI_REQUEST_NULL) return;
  MPI_Cancel(&listening_);
  MPI_Wait(&listening_, MPI_STATUS_IGNORE);
}

}  // namespace gantry
