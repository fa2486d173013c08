#include "parallel/mpi_link.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>

#include "parallel/back_off.h"

namespace gantry {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kCancelPatience{100};

}  // namespace

bool MpiLink::all_done() const noexcept {
  return std::all_of(requests.begin(), requests.end(),
                     [](MPI_Request request) { return request == MPI_REQUEST_NULL; });
}

std::vector<int> MpiLink::silent_peers() const {
  std::vector<int> peers;
  for (size_t i = 0; i < requests.size(); ++i) {
    const int peer = pending[i].peer;
    if (requests[i] == MPI_REQUEST_NULL || peer < 0) continue;
    if (std::find(peers.begin(), peers.end(), peer) == peers.end()) peers.push_back(peer);
  }
  return peers;
}

void MpiLink::cancel() noexcept {
  for (size_t i = 0; i < requests.size(); ++i) {
    const bool receives = pending[i].kind == Pending::kFrame || pending[i].kind == Pending::kPart;
    if (receives && requests[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests[i]);
  }
  const auto end = Clock::now() + kCancelPatience;
  int done = 0;
  while (MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                     MPI_STATUSES_IGNORE) == MPI_SUCCESS &&
         done == 0 && Clock::now() < end) {
    std::this_thread::yield();
  }
  pending.clear();
  requests.clear();
}

void leave_behind(std::unique_ptr<MpiLink> link) noexcept {
  static auto* const kept = new std::vector<std::unique_ptr<MpiLink>>;
  static std::mutex mutex;
  const std::scoped_lock lock(mutex);
  try {
    kept->emplace_back();
    kept->back() = std::move(link);
  } catch (...) {
    static_cast<void>(link.release());
  }
}

MPI_Comm duplicate(MPI_Comm comm, const CommunicatorOptions& options) {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Comm_idup(comm, &copy, &request), "MPI_Comm_idup");
  const auto end = Clock::now() + options.timeout;
  int done = 0;
  for (int idle_polls = 0; done == 0; ++idle_polls) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Comm_idup");
    if (done == 0 && Clock::now() > end) {
      throw Error(ErrorCode::kTimeout,
                  fmt::format("MPI_Comm_idup: not every rank came within {:.1f} s",
                              std::chrono::duration<double>(options.timeout).count()));
    }
    back_off(idle_polls);
  }
  check_mpi(MPI_Comm_set_errhandler(copy, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  return copy;
}

}  // namespace gantry
