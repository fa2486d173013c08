// The reference: every code through the layout's formula.

#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::scalar {
namespace {

template <typename Store>
void dequantize(const DequantizePanel& call, const Store& store) noexcept {
  for (int64_t k = call.k_begin; k < call.k_begin + call.k_count; ++k) {
    for (int64_t lane = 0; lane < kPanelWidth; ++lane)
      store(lane, k - call.k_begin, weight_at(*call.coded, call.panel, lane, k));
  }
}

}  // namespace

void dequantize_f32(const DequantizePanel& call) noexcept {
  auto* out = reinterpret_cast<float*>(call.out);
  dequantize(call,
             [out](int64_t lane, int64_t k, float value) { out[k * kPanelWidth + lane] = value; });
}

void dequantize_bf16(const DequantizePanel& call) noexcept {
  auto* out = reinterpret_cast<uint16_t*>(call.out);
  dequantize(call, [out](int64_t lane, int64_t k, float value) {
    out[k / 2 * (kPanelWidth * 2) + lane * 2 + k % 2] = f32_to_bf16(value);
  });
}

}  // namespace gantry::scalar
