#include <cstdlib>

#include "parallel/mpi_session.h"

// Takes the place of mpi_session.cpp in builds without MPI.

namespace gantry {

MpiSession::MpiSession() {
  throw Error(ErrorCode::kUnsupported,
              "this gantry was built without MPI: configure with -D GANTRY_WITH_MPI=ON");
}

MpiSession::~MpiSession() = default;

bool MpiSession::available() noexcept { return false; }

std::unique_ptr<Communicator> MpiSession::make_world(const CommunicatorOptions& /*options*/) const {
  return nullptr;  // there is no session to call this on
}

void MpiSession::abort_job(int exit_code) noexcept { std::_Exit(exit_code); }

}  // namespace gantry
