#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/base/cpu_features.h"
#include "kernels/base/dtype.h"
#include "kernels/grouped_gemm/gemm_block.h"
#include "kernels/grouped_gemm/grouped_gemm.h"

namespace gantry {

/// A grouped GEMM kernel: what it needs and what it computes.
struct GroupedGemmKernel {
  std::string_view name;  ///< weight type, ISA and register tile, e.g. "bf16_avx512_4x4"
  Isa isa;
  PackedLayout layout;
  DType dtype;
  int64_t tile_rows;  ///< rows that share one pass over the weight
  void (*run)(const GemmBlock& block) noexcept;
};

/// Every kernel in this binary, best first. Dispatch, tests and benches walk this list.
std::span<const GroupedGemmKernel> grouped_gemm_kernels() noexcept;

/// The first kernel of the list that reads `layout` and `dtype` and runs on `isas`: a pure
/// function, so that tests can ask what another machine would run.
/// @throws Error kUnsupported if there is none
const GroupedGemmKernel& select_grouped_gemm(PackedLayout layout, DType dtype, IsaSet isas);

}  // namespace gantry
