#include "parallel/mpi_session.h"

#include <mpi.h>

#include <cstdlib>

#include "parallel/communicator_mpi.h"
#include "parallel/mpi_control.h"

namespace gantry {

MpiSession::MpiSession() {
  int ended = 0;
  MPI_Finalized(&ended);
  if (ended != 0) throw Error(ErrorCode::kMpi, "MPI has ended in this process; it cannot restart");
  int running = 0;
  MPI_Initialized(&running);
  if (running == 0) {
    int provided = MPI_THREAD_SINGLE;
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided),
              "MPI_Init_thread");
    started_ = true;
  }
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size_), "MPI_Comm_size");
}

MpiSession::~MpiSession() {
  if (started_) MPI_Finalize();
}

bool MpiSession::available() noexcept { return true; }

std::unique_ptr<Communicator> MpiSession::make_world(const CommunicatorOptions& options) const {
  return make_mpi_communicator(MPI_COMM_WORLD, options);
}

void MpiSession::abort_job(int exit_code) noexcept {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace gantry
