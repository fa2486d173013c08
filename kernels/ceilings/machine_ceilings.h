#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"

namespace gantry GANTRY_API {

/// What this machine does at most, all threads together: other numbers are read as a part of it.
/// All figures are decimal: 1 GB = 1e9 bytes, 1 TFLOP = 1e12 FLOP; a multiply-add is 2 FLOP.
struct MachineCeilings {
  double read_gb_s = 0;        ///< bytes read from memory, GB/s
  double fma_f32_tflops = 0;   ///< f32 multiply-adds of the widest vectors, TFLOP/s
  double dot_bf16_tflops = 0;  ///< AVX512_BF16 dot products, TFLOP/s; 0: none
  double amx_bf16_tflops = 0;  ///< AMX-BF16 tile products, TFLOP/s; 0: none
  double dot_int8_tops = 0;    ///< AVX512_VNNI dot products, 1e12 operations/s; 0: none
  int threads = 0;             ///< that worked at once

  /// The fastest way to multiply int8, 1e12 operations/s.
  [[nodiscard]] double int8_tops() const noexcept {
    return std::max(dot_int8_tops, fma_f32_tflops);
  }
  /// The fastest way to multiply bf16 weights, TFLOP/s.
  [[nodiscard]] double bf16_tflops() const noexcept {
    return std::max({fma_f32_tflops, dot_bf16_tflops, amx_bf16_tflops});
  }
};

/// Measures the ceilings with the instruction sets of `isas` (of which this CPU must have all; see
/// `host_isas`), each as the best of `repeats` runs. Every thread starts at the same moment; if
/// `threads.executor` runs fewer tasks at once than `threads.resolved_count()`, the figures are
/// those of what it does run.
///
/// The memory to read is allocated here: take 2 GiB or more, so that caches play no part. Reading
/// it takes `repeats` times read_bytes / bandwidth, all arithmetic together some 0.2 s.
/// @throws Error kInvalidArgument if read_bytes is below 1 MiB a thread or repeats below 1
/// @throws Error kOutOfMemory
[[nodiscard]] MachineCeilings measure_ceilings(IsaSet isas, const Threads& threads,
                                               int64_t read_bytes, int repeats);

/// Measures `MachineCeilings::read_gb_s` alone, any number of times: on a shared machine it drifts,
/// so a bench measures it right before and after what it compares with it. Holds the memory that it
/// reads. One thread at a time may call it.
class ReadProbe {
 public:
  /// @throws as measure_ceilings
  ReadProbe(IsaSet isas, Threads threads, int64_t read_bytes);

  /// GB/s: the best of `repeats` passes over the memory.
  /// @throws Error kInvalidArgument if repeats is below 1
  [[nodiscard]] double gb_s(int repeats);

 private:
  Threads threads_;
  int64_t share_;  // bytes of each task
  void (*read_)(const std::byte*, int64_t) noexcept;
  ByteBuffer memory_;
};

}  // namespace gantry
