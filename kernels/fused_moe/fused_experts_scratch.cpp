// How much scratch calls of a size need.

#include <algorithm>

#include "kernels/fused_moe/fused_experts.h"
#include "kernels/fused_moe/matrix_rows.h"

namespace gantry {

void FusedExpertsScratchSize::cover(const FusedExpertsScratchSize& other) noexcept {
  rows_bytes = std::max(rows_bytes, other.rows_bytes);
  intermediate_bytes = std::max(intermediate_bytes, other.intermediate_bytes);
  num_slots = std::max(num_slots, other.num_slots);
  amax_values = std::max(amax_values, other.amax_values);
}

FusedExpertsScratchSize fused_experts_scratch(const PackedExperts& experts,
                                              const FusedExpertsKernels& kernels, int64_t max_rows,
                                              bool up_rows) noexcept {
  return {.rows_bytes = (up_rows ? 2 : 1) * max_rows *
                        gathered_stride_bytes(kernels.w13, experts.w13, experts.transforms_x()),
          .intermediate_bytes = max_rows * f32_row_stride_bytes(kernels.w2, experts.w2),
          .num_slots = experts.num_slots};
}

FusedExpertsScratchSize linear_scratch(const PackedLayout& layout,
                                       const FusedExpertsKernels& kernels,
                                       int64_t max_tokens) noexcept {
  return {.rows_bytes = max_tokens * row_stride_bytes(kernels.w13, layout),
          .intermediate_bytes = 0,
          .num_slots = 1};
}

}  // namespace gantry
