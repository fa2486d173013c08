#pragma once

// `gantry bench --device`: layers of MoE experts on a GPU, next to its ceilings.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_ceilings.h"
#include "tools/bench_case.h"
#include "tools/bench_report.h"

namespace gantry::cli {

struct DeviceBenchOptions {
  std::string shape;
  std::string format;
  std::string directory;  ///< instead of shape and format
  std::string activations;
  std::vector<int64_t> tokens;
  std::vector<BenchRouting> routing;
  double rotate_gb = 1.5;
  double seconds = 1.5;
  bool batch_invariant = false;
  bool generic_kernels = false;  ///< only those that every GPU has
  uint64_t seed = 1;
  bool cublas = false;  ///< a second row for each: cuBLAS' grouped GEMMs of the same rows in bf16
  std::string cublas_library;  ///< empty: the usual names
  std::vector<FindingKind> allow;
  Threads threads;
  CeilingWork ceilings;
};

struct DeviceBenchResult {
  std::string kernels;  ///< what runs, in words
  DeviceCeilings ceilings;
  std::vector<BenchRow> rows;
};

/// Times whole forward calls with external routing: every batch of every layer is a CUDA graph, and
/// the graphs are replayed in turn between two events, so that the time is the device's and weights
/// come from its memory. Weights rotate over `rotate_gb`.
///
///   ceiling = max(bytes of the touched experts / read bandwidth, flops / peak)
///
/// Bandwidth and peaks are those of the same run; the peak is that of e4m3 where rows are e4m3.
/// rel_err is that of output_error, of the first batch.
/// @param on_row called with each row as it is measured
/// @throws Error as make_bench_model and DeviceMoeLayer do
DeviceBenchResult bench_on_device(const DeviceBenchOptions& options,
                                  const std::shared_ptr<Device>& device,
                                  const std::function<void(const DeviceBenchResult&)>& on_start,
                                  const std::function<void(const BenchRow&)>& on_row);

}  // namespace gantry::cli
