#pragma once

#include <mpi.h>

#include <memory>

#include "kernels/base/export.h"
#include "parallel/communicator.h"

// The one public header that includes mpi.h: for programs that use MPI themselves. Link
// gantry::mpi.

namespace gantry GANTRY_API {

/// A communicator over MPI, for buffers in host memory.
///
/// All waits are non-blocking calls that are polled, so none lasts longer than `options.timeout`
/// without progress. Messages of any size are cut into pieces that MPI's counts can hold. Every
/// operation compares its name, root and sizes between each two ranks; the header that does this
/// carries small payloads with it.
///
/// MPI must have been started with MPI_THREAD_SERIALIZED or better if `abort` is to reach other
/// ranks from a thread other than the one that made the communicator; else they learn of it when
/// that thread is next in an operation.
///
/// Destruction tells the other ranks and waits for theirs, at most 5 s. After a failure nothing of
/// MPI is called any more, and the process should end with MPI_Abort: peers may be gone, and
/// memory of transfers that were cut off may still be known to MPI.
///
/// @param comm an intracommunicator, duplicated here; collective over it. Stays the caller's.
/// @throws Error kInvalidArgument if MPI is not running or comm is an intercommunicator;
///         kMpi, kTimeout
std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm,
                                                    const CommunicatorOptions& options);

}  // namespace gantry
