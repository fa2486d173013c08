#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "kernels/base/parallel_for.h"
#include "tools/awq_scaling.h"
#include "tools/input_ranges.h"
#include "tools/quantize_plan.h"
#include "tools/stats_hessians.h"

namespace gantry::cli {

struct QuantizeRun {
  std::filesystem::path directory;  ///< OUT
  /// A GGUF file that was named itself: it is the input, and files beside it are not carried.
  std::filesystem::path alone = {};
  int64_t shard_bytes = 0;
  int64_t memory_bytes = 0;  ///< that the jobs under way may need together
  bool resume = false;
  std::string fingerprint;  ///< of the request and the source files
  Threads threads;
  InputRanges ranges;
  StatsHessians* hessians = nullptr;            ///< of GPTQ; null: round to nearest, or AWQ
  const AwqScaling* awq = nullptr;              ///< of AWQ; not with `hessians`
  std::function<void(int64_t bytes)> progress;  ///< bytes of the source; by several threads
};

struct QuantizeResult {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t bytes_kept = 0;  ///< of a run before, with resume
};

/// Writes the checkpoint: experts by round-to-nearest, GPTQ or AWQ, other layers that are quantized
/// by round-to-nearest, the rest as it is, config.json, and the source's other files (tokenizer,
/// code, licence). It appears under its name when it is whole (CheckpointWriter).
///
/// Every expert (and every other matrix) is a job of its own: read, brought to f32, quantized,
/// packed, written. As many run at once as threads and memory allow.
///
/// @throws Error kFormat naming tensor and element where a weight is NaN or infinite
/// @throws Error kUnsupported where a weight is too large for the format, naming the tensor
/// @throws Error kOutOfMemory if not even one job fits into the memory
/// @throws Error kIo
QuantizeResult run_quantize(const MoeModel& model, const QuantizePlan& plan,
                            const QuantizeRun& run);

}  // namespace gantry::cli
