// The reference: one element at a time, with the library's own exp.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/float_convert.h"
#include "kernels/fused_moe/row_ops_vector.h"
#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::scalar {
namespace {

void store_value(std::byte* row, int64_t column, float value, bool round, bool as_bf16) {
  if (as_bf16) {
    const uint16_t bits = f32_to_bf16(value);
    std::memcpy(row + column * 2, &bits, 2);
  } else {
    const float stored = round ? round_to_bf16(value) : value;
    std::memcpy(row + column * 4, &stored, 4);
  }
}

void gather(const GatherRows& g) noexcept {
  for (int64_t r = 0; r < g.num_rows; ++r) {
    const float* x = g.x + (g.token != nullptr ? g.token[r] : r) * g.n;
    const float factor = g.scale != nullptr ? g.scale[g.choice != nullptr ? g.choice[r] : r] : 1.0F;
    for (int64_t i = 0; i < g.padded; ++i) {
      float value = 0.0F;
      if (i < g.n) {
        value = x[g.order != nullptr ? g.order[i] : i];
        if (g.factors != nullptr) value *= g.factors[i];
        value *= factor;
      }
      store_value(g.rows + r * g.stride, i, value, g.round_bf16, g.store_bf16);
    }
  }
}

float swish(float x, float alpha) { return x / (1.0F + std::exp(-alpha * x)); }

// Clamps that keep NaN.
float clamp_above(float x, float high) { return x > high ? high : x; }
float clamp_both(float x, float high) { return x > high ? high : (x < -high ? -high : x); }

float activated(const ActivateBlock& b, float a, float u) {
  using Kind = ActivateBlock::Kind;
  switch (b.kind) {
    case Kind::kSilu:
      return swish(clamp_above(a, b.limit), 1.0F) * clamp_both(u, b.limit);
    case Kind::kSwigluOai:
      return swish(clamp_above(a, b.limit), b.alpha) * (clamp_both(u, b.limit) + b.beta);
    case Kind::kSiluNoMul:
      return swish(a, 1.0F);
    default:
      return a < 0.0F ? 0.0F : a * a;
  }
}

void activate(const ActivateBlock& b) noexcept {
  for (int64_t r = 0; r < b.num_rows; ++r) {
    const float* c = b.c + r * 32;
    float values[32] = {};
    if (b.kind == ActivateBlock::Kind::kOther) {
      row_ops::activate_other(b, c, b.gated, values);
    } else {
      for (int64_t i = 0; i < b.n; ++i) {
        const float a = c[i] + (b.bias_gate != nullptr ? b.bias_gate[i] : 0.0F);
        const float up_bias = b.gated && b.bias_up != nullptr ? b.bias_up[i] : 0.0F;
        values[i] = activated(b, a, b.gated ? c[16 + i] + up_bias : 0.0F);
      }
    }
    for (int64_t i = 0; b.factors != nullptr && i < b.n; ++i)
      values[i] *= b.factors[i];
    for (int64_t i = 0; i < b.padded; ++i)
      store_value(b.out + r * b.out_stride, i, values[i], b.round_bf16, b.store_bf16);
  }
}

void accumulate(const AccumulateBlock& b) noexcept {
  for (int64_t r = 0; r < b.num_rows; ++r) {
    float* out = b.out + (b.token != nullptr ? b.token[r] : b.first_token + r) * b.out_stride;
    const float weight = b.weight == nullptr
                             ? 1.0F
                             : b.weight[b.choice != nullptr ? b.choice[r] : b.first_token + r];
    for (int64_t i = 0; i < b.n; ++i) {
      const float value = b.c[r * 32 + i] + (b.bias != nullptr ? b.bias[i] : 0.0F);
      out[i] += weight * value;
    }
  }
}

}  // namespace

void quantize_int8(const QuantizeInt8& call) noexcept {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr int64_t kNibbleOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  for (int64_t r = 0; r < call.num_rows; ++r) {
    std::byte* row = call.rows + r * call.stride;
    const float* x = call.x + (call.token != nullptr ? call.token[r] : r) * call.x_stride;
    const float factor =
        call.factor == nullptr ? 1.0F : call.factor[call.choice != nullptr ? call.choice[r] : r];
    float most = call.amax != nullptr ? call.amax[r] : 0.0F;
    bool finite = std::isfinite(most);
    for (int64_t i = 0; i < call.n; ++i) {
      const float value = x[i] * factor;
      finite = finite && (call.static_scale > 0.0F ? !std::isnan(value) : std::isfinite(value));
      if (call.amax == nullptr) most = std::max(most, std::fabs(value));
    }
    Int8RowTail tail{call.static_scale > 0.0F ? call.static_scale : most / 127.0F, 0};
    const bool keep = finite && tail.scale > 0.0F;
    // x is read ahead of what is written: eight values give eight bytes.
    for (int64_t begin = 0; begin < call.padded; begin += 8) {
      int codes[8] = {};
      for (int64_t i = begin; keep && i < std::min(begin + 8, call.n); ++i) {
        const float code = std::nearbyint(x[i] * factor / tail.scale);
        codes[i - begin] = static_cast<int>(std::clamp(code, -128.0F, 127.0F));
        tail.sum += codes[i - begin];
      }
      for (int64_t i = 0; i < 8; ++i)
        row[begin + i] = static_cast<std::byte>(codes[call.nibble_order ? kNibbleOrder[i] : i]);
    }
    if (!finite) tail.scale = kNan;
    std::memcpy(row + call.tail, &tail, sizeof(tail));
    std::byte* sums = row + call.tail + sizeof(tail);
    for (int64_t begin = 0; call.group > 0 && begin < call.padded; begin += call.group, sums += 4) {
      int32_t sum = 0;
      for (int64_t i = begin; i < std::min(begin + call.group, call.padded); ++i)
        sum += static_cast<int8_t>(row[i]);
      std::memcpy(sums, &sum, 4);
    }
  }
}

const RowOps kRowOps = {gather, activate, accumulate, quantize_int8};

}  // namespace gantry::scalar
