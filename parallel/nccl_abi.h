#pragma once

// What Gantry uses of NCCL's binary interface, declared here so that no build needs nccl.h: NCCL is
// loaded when a program asks for it. Where a build finds nccl.h, nccl_abi_check.cpp compares every
// line of this with it. Internal.

#include <climits>
#include <cstddef>

namespace gantry::nccl {

struct Comm;  // opaque: *ncclComm_t
struct UniqueId {
  char internal[128];
};

enum Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

enum DataType : int { kInt8 = 0, kFloat32 = 7 };
enum ReduceOp : int { kSum = 0 };

/// The first fields of ncclConfig_t, which are those of NCCL 2.14: NCCL reads as many bytes as
/// `size` says and takes defaults for fields that `version` did not have.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = INT_MIN;
};

/// As NCCL writes versions from 2.9 on: 22809 is 2.28.9.
inline constexpr int kFirstNonBlockingVersion = 21400;

using Stream = void*;  // cudaStream_t

/// The table of functions: X(name without "nccl", result, parameters).
#define GANTRY_NCCL_FUNCTIONS(X)                                                                  \
  X(GetVersion, Result, (int* version))                                                           \
  X(GetErrorString, const char*, (Result result))                                                 \
  X(GetLastError, const char*, (Comm * comm))                                                     \
  X(GetUniqueId, Result, (UniqueId * id))                                                         \
  X(CommInitRankConfig, Result,                                                                   \
    (Comm * *comm, int num_ranks, UniqueId id, int rank, Config* config))                         \
  X(CommFinalize, Result, (Comm * comm))                                                          \
  X(CommDestroy, Result, (Comm * comm))                                                           \
  X(CommAbort, Result, (Comm * comm))                                                             \
  X(CommGetAsyncError, Result, (Comm * comm, Result * state))                                     \
  X(CommCount, Result, (const Comm* comm, int* count))                                            \
  X(CommUserRank, Result, (const Comm* comm, int* rank))                                          \
  X(GroupStart, Result, ())                                                                       \
  X(GroupEnd, Result, ())                                                                         \
  X(Send, Result,                                                                                 \
    (const void* data, size_t count, DataType type, int peer, Comm* comm, Stream stream))         \
  X(Recv, Result, (void* data, size_t count, DataType type, int peer, Comm* comm, Stream stream)) \
  X(AllGather, Result,                                                                            \
    (const void* send, void* receive, size_t count, DataType type, Comm* comm, Stream stream))    \
  X(Reduce, Result,                                                                               \
    (const void* send, void* receive, size_t count, DataType type, ReduceOp op, int root,         \
     Comm* comm, Stream stream))                                                                  \
  X(AllReduce, Result,                                                                            \
    (const void* send, void* receive, size_t count, DataType type, ReduceOp op, Comm* comm,       \
     Stream stream))

struct Api {
#define GANTRY_NCCL_MEMBER(name, result, parameters) result(*name) parameters = nullptr;
  GANTRY_NCCL_FUNCTIONS(GANTRY_NCCL_MEMBER)
#undef GANTRY_NCCL_MEMBER
};

}  // namespace gantry::nccl
