#pragma once

#include <memory>

#include "kernels/base/export.h"
#include "parallel/communicator.h"

namespace gantry GANTRY_API {

/// MPI of this process, for programs that do not use MPI themselves. (Programs that do hand their
/// MPI_Comm to communicator_mpi.h and need no session.) Part of gantry::mpi, which in a build
/// without MPI refuses to start.
class MpiSession {
 public:
  /// Starts MPI unless this process has done so. Blocks until all ranks of the job have.
  /// @throws Error kUnsupported in a build without MPI; kMpi if MPI cannot start or has ended
  MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  /// Ends MPI if the constructor started it. Collective, and blocks as MPI_Finalize does; every
  /// communicator must be gone. Where a communicator failed MPI must not end in this way: call
  /// `abort_job`.
  ~MpiSession();

  /// Was this library built with MPI?
  static bool available() noexcept;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }

  /// A group of all ranks. Collective.
  [[nodiscard]] std::unique_ptr<Communicator> make_world(const CommunicatorOptions& options) const;

  /// Ends every process of the job, this one included, with `exit_code`: MPI_Abort.
  [[noreturn]] static void abort_job(int exit_code) noexcept;

 private:
  int rank_ = 0;
  int size_ = 1;
  bool started_ = false;
};

}  // namespace gantry
