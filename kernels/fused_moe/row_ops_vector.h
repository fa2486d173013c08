#pragma once

// Row operations over a vector type, for the files of one instruction set each. `V` has: Type,
// kWidth, loadu(p, count), gather(p, indices, count), store(p, v, count), store_bf16(p, v, count),
// keep(v, count), set1, zero, add, sub, mul, fma, min (keeps NaN of the second operand), max
// (ditto), div, round (to nearest even), scale(v, n) = v * 2^n, round_bf16. `count` lanes from 0 to
// kWidth are touched; others read as zero.

#include "kernels/fused_moe/row_ops.h"

namespace gantry::row_ops {

// exp(x) to about 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, then a polynomial in r (Taylor
// coefficients; the first term left out is r^8 / 40320 < 6e-9 relative) times 2^n: zero
// or infinity where f32 is, and NaN stays NaN.
template <typename V>
typename V::Type exp(typename V::Type x) {
  // Constant first: min and max return their second operand where one is NaN.
  x = V::min(V::set1(100.0F), V::max(V::set1(-103.0F), x));
  const auto n = V::round(V::mul(x, V::set1(1.44269504088896341F)));
  auto r = V::fma(n, V::set1(-0.693359375F), x);       // ln 2 in two parts: the first is exact
  r = V::fma(n, V::set1(2.12194440054690583e-4F), r);  // in few bits, so n times it is, too
  auto p = V::set1(1.0F / 5040.0F);
  p = V::fma(p, r, V::set1(1.0F / 720.0F));
  p = V::fma(p, r, V::set1(1.0F / 120.0F));
  p = V::fma(p, r, V::set1(1.0F / 24.0F));
  p = V::fma(p, r, V::set1(1.0F / 6.0F));
  p = V::fma(p, r, V::set1(0.5F));
  p = V::fma(p, r, V::set1(1.0F));
  p = V::fma(p, r, V::set1(1.0F));
  return V::scale(p, n);
}

// x * sigmoid(alpha x) = x / (1 + exp(-alpha x))
template <typename V>
typename V::Type swish(typename V::Type x, typename V::Type minus_alpha) {
  return V::div(x, V::add(V::set1(1.0F), exp<V>(V::mul(x, minus_alpha))));
}

template <typename V>
void store_row(std::byte* row, int64_t column, typename V::Type value, int64_t count, bool round,
               bool as_bf16) {
  if (as_bf16) {
    V::store_bf16(row + column * 2, value, count);
  } else {
    V::store(reinterpret_cast<float*>(row) + column, round ? V::round_bf16(value) : value, count);
  }
}

static inline int64_t clamp_count(int64_t count, int64_t width) {
  return count < 0 ? 0 : count < width ? count : width;
}

template <typename V>
void gather(const GatherRows& g) {
  for (int64_t r = 0; r < g.num_rows; ++r) {
    const float* x = g.x + (g.token != nullptr ? g.token[r] : r) * g.n;
    std::byte* row = g.rows + r * g.stride;
    const bool scaled = g.scale != nullptr;
    const auto factor = V::set1(scaled ? g.scale[g.choice != nullptr ? g.choice[r] : r] : 1.0F);
    for (int64_t i = 0; i < g.padded; i += V::kWidth) {
      const int64_t count = clamp_count(g.n - i, V::kWidth);
      auto value = g.order != nullptr ? V::gather(x, g.order + i, count) : V::loadu(x + i, count);
      if (g.factors != nullptr) value = V::mul(value, V::loadu(g.factors + i, count));
      if (scaled) value = V::mul(value, factor);
      store_row<V>(row, i, value, clamp_count(g.padded - i, V::kWidth), g.round_bf16, g.store_bf16);
    }
  }
}

template <typename V>
typename V::Type activated(const ActivateBlock& b, typename V::Type a, typename V::Type u) {
  using Kind = ActivateBlock::Kind;
  const auto limit = V::set1(b.limit);
  switch (b.kind) {
    case Kind::kSilu:
      a = V::min(limit, a);
      u = V::max(V::sub(V::zero(), limit), V::min(limit, u));
      return V::mul(swish<V>(a, V::set1(-1.0F)), u);
    case Kind::kSwigluOai:
      a = V::min(limit, a);
      u = V::max(V::sub(V::zero(), limit), V::min(limit, u));
      return V::mul(swish<V>(a, V::set1(-b.alpha)), V::add(u, V::set1(b.beta)));
    case Kind::kSiluNoMul:
      return swish<V>(a, V::set1(-1.0F));
    default:  // kRelu2NoMul
      a = V::max(V::zero(), a);
      return V::mul(a, a);
  }
}

// The general case: the row through f32 buffers and the plain function.
static inline void activate_other(const ActivateBlock& b, const float* c, bool gated, float* out) {
  float gate[32];
  float up[32];
  for (int64_t i = 0; i < b.n; ++i) {
    gate[i] = c[i] + (b.bias_gate != nullptr ? b.bias_gate[i] : 0.0F);
    if (gated) up[i] = c[16 + i] + (b.bias_up != nullptr ? b.bias_up[i] : 0.0F);
  }
  b.other(b.other_context, b.n, gate, gated ? up : gate, out);
}

template <typename V>
void activate(const ActivateBlock& b) {
  const bool gated = b.gated;
  for (int64_t r = 0; r < b.num_rows; ++r) {
    const float* c = b.c + r * 32;
    std::byte* row = b.out + r * b.out_stride;
    float buffer[32];
    const bool other = b.kind == ActivateBlock::Kind::kOther;
    if (other) activate_other(b, c, gated, buffer);
    for (int64_t i = 0; i < b.padded; i += V::kWidth) {
      const int64_t count = clamp_count(b.n - i, V::kWidth);
      auto value = V::zero();
      if (count > 0 && other) {
        value = V::loadu(buffer + i, count);
      } else if (count > 0) {
        auto a = V::loadu(c + i, count);
        auto u = gated ? V::loadu(c + 16 + i, count) : V::zero();
        if (b.bias_gate != nullptr) a = V::add(a, V::loadu(b.bias_gate + i, count));
        if (gated && b.bias_up != nullptr) u = V::add(u, V::loadu(b.bias_up + i, count));
        value = activated<V>(b, a, u);
      }
      if (b.factors != nullptr) value = V::mul(value, V::loadu(b.factors + i, count));
      if (count < V::kWidth) value = V::keep(value, count);
      store_row<V>(row, i, value, clamp_count(b.padded - i, V::kWidth), b.round_bf16, b.store_bf16);
    }
  }
}

template <typename V>
void accumulate(const AccumulateBlock& b) {
  for (int64_t r = 0; r < b.num_rows; ++r) {
    const float* c = b.c + r * 32;
    float* out = b.out + (b.token != nullptr ? b.token[r] : b.first_token + r) * b.out_stride;
    const auto weight = V::set1(
        b.weight == nullptr ? 1.0F
                            : b.weight[b.choice != nullptr ? b.choice[r] : b.first_token + r]);
    for (int64_t i = 0; i < b.n; i += V::kWidth) {
      const int64_t count = clamp_count(b.n - i, V::kWidth);
      auto value = V::loadu(c + i, count);
      if (b.bias != nullptr) value = V::add(value, V::loadu(b.bias + i, count));
      V::store(out + i, V::add(V::loadu(out + i, count), V::mul(weight, value)), count);
    }
  }
}

template <typename V>
constexpr RowOps table(void (*quantize_int8)(const QuantizeInt8&) noexcept) {
  return {[](const GatherRows& call) noexcept { gather<V>(call); },
          [](const ActivateBlock& call) noexcept { activate<V>(call); },
          [](const AccumulateBlock& call) noexcept { accumulate<V>(call); }, quantize_int8};
}

}  // namespace gantry::row_ops
