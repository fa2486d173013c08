#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/fused_moe/fused_experts.h"
#include "kernels/fused_moe/matrix_rows.h"
#include "kernels/fused_moe/row_ops.h"

namespace gantry {
namespace {

constexpr int64_t kTaskRows = 96;

struct Linear {
  std::span<const float> x;
  const PackedLayout& layout;
  const std::byte* weight;
  const float* bias;
  std::span<float> y;
  const FusedExpertsKernels& kernels;
  std::byte* rows;
  int64_t stride;
  int64_t num_tokens;
  int64_t row_tasks;
};

void gather_task(const Linear& l, int64_t task) {
  const int64_t begin = task * kTaskRows;
  l.kernels.row_ops->gather({.x = l.x.data() + begin * l.layout.k,
                             .token = nullptr,
                             .choice = nullptr,
                             .scale = nullptr,
                             .rows = l.rows + begin * l.stride,
                             .stride = l.stride,
                             .num_rows = std::min(kTaskRows, l.num_tokens - begin),
                             .n = l.layout.k,
                             .padded = l.layout.padded_k(),
                             .round_bf16 = false,
                             .store_bf16 = false});
}

void panel_task(const Linear& l, int64_t task) {
  const int64_t panel = task / l.row_tasks;
  const int64_t row_begin = task % l.row_tasks * kTaskRows;
  const int64_t row_end = std::min(l.num_tokens, row_begin + kTaskRows);
  const int64_t column = panel * kPanelWidth;
  const int64_t n = std::min(kPanelWidth, l.layout.n - column);
  alignas(64) float c[kMaxPanelRows * kPanelWidth];
  for (int64_t row = row_begin; row < row_end; row += kMaxPanelRows) {
    const int64_t rows = std::min(kMaxPanelRows, row_end - row);
    l.kernels.w13.gemm->run({.x = l.rows + row * l.stride,
                             .x_stride = l.stride,
                             .panel = l.weight + panel * l.layout.panel_bytes(),
                             .k = l.layout.padded_k(),
                             .num_rows = rows,
                             .c = c,
                             .next = nullptr});
    for (int64_t r = 0; r < rows; ++r) {
      float* y = l.y.data() + (row + r) * l.layout.n + column;
      for (int64_t i = 0; i < n; ++i)
        y[i] = c[r * kPanelWidth + i] + (l.bias != nullptr ? l.bias[column + i] : 0.0F);
    }
  }
}

}  // namespace

void linear(std::span<const float> x, const PackedLayout& layout, const std::byte* weight,
            const float* bias, std::span<float> y, const FusedExpertsKernels& kernels,
            const Threads& threads, FusedExpertsScratch& scratch) {
  const int64_t num_tokens = static_cast<int64_t>(x.size()) / layout.k;
  GANTRY_CHECK(!layout.gated && x.size() == static_cast<size_t>(num_tokens * layout.k) &&
                   y.size() == static_cast<size_t>(num_tokens * layout.n),
               ErrorCode::kInvalidArgument, "linear: W [{}, {}], {} inputs, {} outputs", layout.n,
               layout.k, x.size(), y.size());
  GANTRY_CHECK(kernels.w13.gemm->rows == ActivationDType::kF32, ErrorCode::kInvalidArgument,
               "linear: expected a kernel of f32 rows, found {}", kernels.w13.gemm->name);
  const int64_t needed = linear_scratch(layout, kernels, num_tokens).rows_bytes;
  GANTRY_CHECK(needed <= static_cast<int64_t>(scratch.rows.size()), ErrorCode::kInvalidArgument,
               "linear: {} rows need {} bytes of scratch, there are {}", num_tokens, needed,
               scratch.rows.size());
  const Linear l{.x = x,
                 .layout = layout,
                 .weight = weight,
                 .bias = bias,
                 .y = y,
                 .kernels = kernels,
                 .rows = scratch.rows.data(),
                 .stride = row_stride_bytes(kernels.w13, layout),
                 .num_tokens = num_tokens,
                 .row_tasks = (num_tokens + kTaskRows - 1) / kTaskRows};
  parallel_for(threads, l.row_tasks, [&l](int64_t task) { gather_task(l, task); });
  parallel_for(threads, l.row_tasks * layout.num_panels(),
               [&l](int64_t task) { panel_task(l, task); });
}

}  // namespace gantry
