#pragma once

#include <cstdint>

// What tests ask of the double besides NCCL's own functions (through dlsym).

extern "C" {

/// The plan (see Plan) of communicators that this thread makes from now on; "" takes that of the
/// environment.
__attribute__((visibility("default"))) void nccl_double_set_plan(const char* plan);

struct NcclDoubleCounts {
  int64_t made = 0;       ///< ncclCommInitRankConfig
  int64_t finalized = 0;  ///< ncclCommFinalize
  int64_t destroyed = 0;  ///< ncclCommDestroy
  int64_t aborted = 0;    ///< ncclCommAbort
  int64_t native_sums = 0;
};

/// Of this process so far.
__attribute__((visibility("default"))) void nccl_double_get_counts(NcclDoubleCounts* counts);
}
