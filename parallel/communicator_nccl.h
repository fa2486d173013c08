#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "kernels/base/export.h"
#include "parallel/device_communicator.h"

namespace gantry GANTRY_API {

/// NCCL's communicator (`ncclComm_t`), without its header.
using NcclHandle = void*;

/// How ranks that have no NCCL communicator yet find each other, and hear of each other's failures:
/// a Communicator (`bootstrap_over`), or functions of the engine that holds this layer.
struct NcclBootstrap {
  int rank = 0;
  int size = 1;
  /// Collective, once: rank r's bytes to part r of `all`, on every rank. Throws what goes wrong.
  std::function<void(std::span<const std::byte> own, std::span<std::byte> all)> all_gather;
  /// Throws if another rank has failed; may be empty: then this rank waits until its time-out.
  /// Called while it waits, by the thread that does.
  std::function<void()> check_alive;
  /// Tells the others that this rank has failed; may be empty. Any thread.
  std::function<void(const char* reason, ErrorCode code)> abort;
};

/// @param host outlives the communicators that are made with it; while one of them runs an
///             operation no operation of `host` may run
NcclBootstrap bootstrap_over(Communicator& host);

struct NcclOptions {
  /// For init, each operation and each wait as a whole: NCCL does not tell of progress within them.
  CommunicatorOptions waits;
  /// A file to load; empty: GANTRY_NCCL_LIBRARY, else libnccl.so.2.
  std::string library;
};

/// A communicator over NCCL, for memory of `device`. Collective.
///
/// Everything is non-blocking and polled: a rank that does not come within the time-out, at init or
/// later, is an error on all ranks (ncclCommAbort everywhere), and so is an error that NCCL
/// reports. Nothing waits in ncclCommInit or ncclGroupEnd.
///
/// Sums in rank order are grouped sends and receives and a kernel of ours; SumOrder::kNative is
/// ncclAllReduce, and one ncclReduce a rank for parts.
///
/// Destruction finishes the communicator (ncclCommFinalize, at most 5 s or the time-out, then
/// ncclCommAbort). Every rank destroys it.
///
/// @throws Error kUnsupported, the same on every rank, if a rank cannot load NCCL or ranks have
///         different versions of it (NCCL does not mix them): names the ranks and what they have.
///         kTimeout if a rank does not come; kNccl
std::unique_ptr<DeviceCommunicator> make_nccl_communicator(std::shared_ptr<Device> device,
                                                           const NcclBootstrap& bootstrap,
                                                           const NcclOptions& options);

/// The same over a communicator that the caller has, made by the same library with blocking = 0 (a
/// blocking one can wait for ever within NCCL). It stays the caller's: it is neither finished nor
/// aborted here, so after an error the caller must ncclCommAbort it.
/// @param bootstrap its all_gather is not called
std::unique_ptr<DeviceCommunicator> wrap_nccl_communicator(std::shared_ptr<Device> device,
                                                           NcclHandle comm,
                                                           const NcclBootstrap& bootstrap,
                                                           const NcclOptions& options);

}  // namespace gantry
