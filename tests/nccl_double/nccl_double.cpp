// NCCL's functions over the double's communicators. Sums are added from the last rank to the first,
// so that a test sees whether a sum was NCCL's or ours.

#include "tests/nccl_double/nccl_double.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/nccl_double/double_comm.h"

namespace {

using gantry::nccl::Comm;
using gantry::nccl::Config;
using gantry::nccl::DataType;
using gantry::nccl::ReduceOp;
using gantry::nccl::Result;
using gantry::nccl::Stream;
using gantry::nccl::UniqueId;
using gantry::nccl_double::DoubleComm;
using gantry::nccl_double::Operation;
using gantry::nccl_double::Segment;

struct Counters {
  std::atomic<int64_t> made, finalized, destroyed, aborted, native_sums;
};
Counters counters;

struct Group {
  int depth = 0;
  std::vector<DoubleComm*> comms;
};
thread_local Group group;

DoubleComm* comm_of(Comm* comm) { return reinterpret_cast<DoubleComm*>(comm); }
const DoubleComm* comm_of(const Comm* comm) { return reinterpret_cast<const DoubleComm*>(comm); }

std::byte* bytes_of(const void* data) {
  return static_cast<std::byte*>(const_cast<void*>(data));  // of sends: only read
}

size_t bytes_of_type(DataType type) { return type == gantry::nccl::kFloat32 ? 4 : 1; }

// Alone, an operation is a group of one.
Result add(DoubleComm* comm, std::unique_ptr<Operation> operation) {
  comm->add(std::move(operation));
  if (group.depth == 0) return comm->submit();
  if (std::find(group.comms.begin(), group.comms.end(), comm) == group.comms.end()) {
    group.comms.push_back(comm);
  }
  return gantry::nccl::kSuccess;
}

// `send` to the roots, and on a root (all: every rank is one) everyone's to `addends`.
Result add_sum(DoubleComm* comm, const void* send, void* receive, size_t count, DataType type,
               int root) {
  if (type != gantry::nccl::kFloat32) return gantry::nccl::kInvalidArgument;
  if (count == 0) return gantry::nccl::kSuccess;
  ++counters.native_sums;
  const size_t bytes = count * sizeof(float);
  auto operation = std::make_unique<Operation>();
  for (int rank = 0; rank < comm->size(); ++rank) {
    if (root < 0 || rank == root) operation->parts.push_back({rank, true, bytes_of(send), bytes});
  }
  if (root < 0 || comm->rank() == root) {
    const auto ranks = static_cast<size_t>(comm->size());
    operation->addends.resize(count * ranks);
    float* addends = operation->addends.data();
    for (size_t rank = 0; rank < ranks; ++rank) {
      operation->parts.push_back(
          {static_cast<int>(rank), false, bytes_of(addends + rank * count), bytes});
    }
    operation->finish = [=] {
      auto* sum = static_cast<float*>(receive);
      std::copy_n(addends + (ranks - 1) * count, count, sum);
      for (size_t rank = ranks - 1; rank-- > 0;) {
        for (size_t i = 0; i < count; ++i)
          sum[i] += addends[rank * count + i];
      }
    };
  }
  return add(comm, std::move(operation));
}

Result add_transfer(DoubleComm* comm, bool sends, const void* data, size_t count, DataType type,
                    int peer) {
  if (peer < 0 || peer >= comm->size()) return gantry::nccl::kInvalidArgument;
  auto operation = std::make_unique<Operation>();
  operation->parts.push_back({peer, sends, bytes_of(data), count * bytes_of_type(type)});
  return add(comm, std::move(operation));
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming): NCCL's names
extern "C" {
#define NCCL_EXPORT __attribute__((visibility("default")))

void nccl_double_get_counts(NcclDoubleCounts* counts) {
  *counts = {.made = counters.made,
             .finalized = counters.finalized,
             .destroyed = counters.destroyed,
             .aborted = counters.aborted,
             .native_sums = counters.native_sums};
}

NCCL_EXPORT Result ncclGetVersion(int* version) {
  *version = gantry::nccl_double::current_plan().version;
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT const char* ncclGetErrorString(Result result) {
  static constexpr const char* kTexts[] = {"no error",
                                           "unhandled cuda error",
                                           "unhandled system error",
                                           "internal error",
                                           "invalid argument",
                                           "invalid usage",
                                           "remote process exited or there was a network "
                                           "error",
                                           "NCCL operation in progress"};
  return result >= 0 && result <= gantry::nccl::kInProgress ? kTexts[result] : "unknown";
}

NCCL_EXPORT const char* ncclGetLastError(Comm* /*comm*/) { return "injected by nccl_double"; }

NCCL_EXPORT Result ncclGetUniqueId(UniqueId* id) {
  std::memset(id->internal, 0, sizeof(id->internal));
  const std::string name = Segment::make_name();
  std::copy(name.begin(), name.end(), id->internal);
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT Result ncclCommInitRankConfig(Comm** comm, int num_ranks, UniqueId id, int rank,
                                          Config* config) {
  if (num_ranks < 1 || rank < 0 || rank >= num_ranks || config->magic != Config().magic ||
      config->size < sizeof(Config)) {
    return gantry::nccl::kInvalidArgument;
  }
  auto made = std::make_unique<DoubleComm>(rank, num_ranks, config->blocking != 0);
  const Result result = made->initialize(id.internal);
  if (result != gantry::nccl::kSuccess && result != gantry::nccl::kInProgress) return result;
  ++counters.made;
  *comm = reinterpret_cast<Comm*>(made.release());
  return result;
}

NCCL_EXPORT Result ncclCommFinalize(Comm* comm) {
  ++counters.finalized;
  return comm_of(comm)->finalize();
}

NCCL_EXPORT Result ncclCommDestroy(Comm* comm) {
  ++counters.destroyed;
  delete comm_of(comm);
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT Result ncclCommAbort(Comm* comm) {
  ++counters.aborted;
  delete comm_of(comm);
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT Result ncclCommGetAsyncError(Comm* comm, Result* state) {
  *state = comm_of(comm)->poll();
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT Result ncclCommCount(const Comm* comm, int* count) {
  *count = comm_of(comm)->size();
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT Result ncclCommUserRank(const Comm* comm, int* rank) {
  *rank = comm_of(comm)->rank();
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT Result ncclGroupStart() {
  ++group.depth;
  return gantry::nccl::kSuccess;
}

NCCL_EXPORT Result ncclGroupEnd() {
  if (group.depth == 0) return gantry::nccl::kInvalidUsage;
  if (--group.depth > 0) return gantry::nccl::kSuccess;
  Result result = gantry::nccl::kSuccess;
  for (DoubleComm* comm : std::exchange(group.comms, {})) {
    const Result one = comm->submit();
    if (result == gantry::nccl::kSuccess || one > gantry::nccl::kSuccess) result = one;
  }
  return result;
}

NCCL_EXPORT Result ncclSend(const void* data, size_t count, DataType type, int peer, Comm* comm,
                            Stream /*stream*/) {
  return add_transfer(comm_of(comm), true, data, count, type, peer);
}

NCCL_EXPORT Result ncclRecv(void* data, size_t count, DataType type, int peer, Comm* comm,
                            Stream /*stream*/) {
  return add_transfer(comm_of(comm), false, data, count, type, peer);
}

NCCL_EXPORT Result ncclAllGather(const void* send, void* receive, size_t count, DataType type,
                                 Comm* comm, Stream /*stream*/) {
  DoubleComm* own = comm_of(comm);
  const size_t bytes = count * bytes_of_type(type);
  if (bytes == 0) return gantry::nccl::kSuccess;
  auto operation = std::make_unique<Operation>();
  for (int rank = 0; rank < own->size(); ++rank) {
    std::byte* part = bytes_of(receive) + static_cast<size_t>(rank) * bytes;
    if (rank == own->rank()) {
      if (part != send) std::memcpy(part, send, bytes);
      continue;
    }
    operation->parts.push_back({rank, true, bytes_of(send), bytes});
    operation->parts.push_back({rank, false, part, bytes});
  }
  return add(own, std::move(operation));
}

NCCL_EXPORT Result ncclReduce(const void* send, void* receive, size_t count, DataType type,
                              ReduceOp /*op*/, int root, Comm* comm, Stream /*stream*/) {
  return add_sum(comm_of(comm), send, receive, count, type, root);
}

NCCL_EXPORT Result ncclAllReduce(const void* send, void* receive, size_t count, DataType type,
                                 ReduceOp /*op*/, Comm* comm, Stream /*stream*/) {
  return add_sum(comm_of(comm), send, receive, count, type, -1);
}
}
// NOLINTEND(readability-identifier-naming)
