#pragma once

#include <cstdint>
#include <functional>

#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "loader/checkpoint.h"
#include "loader/relayout_plan.h"
#include "loader/tensor_sink.h"

namespace gantry GANTRY_API {

struct RelayoutOptions {
  Threads threads;
  /// Bound of all buffers together, whatever the size of the tensors.
  int64_t memory_bytes = int64_t{512} << 20;
  /// Called with bytes that were written, by several threads at once.
  std::function<void(int64_t)> progress;
};

struct RelayoutStats {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t peak_buffer_bytes = 0;
};

/// Reads, lays out anew and writes the tensors of a plan; what the sink has already is
/// left out.
/// @throws Error kFormat naming both, if tensors that are to share one differ
/// @throws Error kOutOfMemory if a row of a tensor does not fit into a thread's share of the memory
/// @throws Error kIo
RelayoutStats run_relayout(const Checkpoint& checkpoint, const RelayoutPlan& plan, TensorSink& sink,
                           const RelayoutOptions& options);

}  // namespace gantry
