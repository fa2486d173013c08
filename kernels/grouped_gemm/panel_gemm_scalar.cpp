// The reference: sums in double, rounded once. Weights are read through the layout's formula.

#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::scalar {
namespace {

void run(const PanelGemm& call, DType dtype) noexcept {
  const PackedLayout layout{.dtype = dtype, .gated = false, .n = kPanelWidth, .k = call.k};
  double sums[kMaxPanelRows][kPanelWidth] = {};
  if (call.accumulate) {
    for (int64_t r = 0; r < call.num_rows; ++r) {
      for (int64_t lane = 0; lane < kPanelWidth; ++lane)
        sums[r][lane] = call.c[r * kPanelWidth + lane];
    }
  }
  for (int64_t k = 0; k < call.k; ++k) {
    float weights[kPanelWidth];
    for (int64_t lane = 0; lane < kPanelWidth; ++lane)
      weights[lane] = load_as_f32(call.panel, dtype, layout.offset_in_panel(lane, k));
    for (int64_t r = 0; r < call.num_rows; ++r) {
      const double x = reinterpret_cast<const float*>(call.x + r * call.x_stride)[k];
      for (int64_t lane = 0; lane < kPanelWidth; ++lane)
        sums[r][lane] += x * static_cast<double>(weights[lane]);
    }
  }
  for (int64_t r = 0; r < call.num_rows; ++r) {
    for (int64_t lane = 0; lane < kPanelWidth; ++lane)
      call.c[r * kPanelWidth + lane] = static_cast<float>(sums[r][lane]);
  }
}

}  // namespace

void panel_gemm_bf16(const PanelGemm& call) noexcept { run(call, DType::kBF16); }
void panel_gemm_f16(const PanelGemm& call) noexcept { run(call, DType::kF16); }
void panel_gemm_f32(const PanelGemm& call) noexcept { run(call, DType::kF32); }

}  // namespace gantry::scalar
