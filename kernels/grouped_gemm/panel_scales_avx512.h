#pragma once

// Scales and zero points of coded panels in AVX-512 registers, for files compiled for it.

#include <immintrin.h>

#include <cstddef>

#include "kernels/quant/weight_format.h"

namespace gantry::avx512 {
namespace {

struct Scales {
  __m512 half[2];
};

// 16 e4m3 scales: the sign in every bit above the others.
__m512i load_e4m3(const std::byte* p) {
  return _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}

__m512 e4m3_magnitude(__m512i code) {
  // Exponent and mantissa as those of a tiny f32 (subnormals too), then times 2^120: exact.
  const __m512i bits = _mm512_slli_epi32(_mm512_and_si512(code, _mm512_set1_epi32(0x7f)), 20);
  return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p120F));
}

// e4m3 and e8m0 scales are of any value: e4m3 ones are finite (NaN is refused at load) and may be
// subnormal; e8m0 255 (NaN) is refused too, and 0 is 2^-127.
[[gnu::always_inline]] inline Scales load_scales(const std::byte* p, ScaleType type) {
  Scales scales;
  for (int h = 0; h < 2; ++h) {
    switch (type) {
      case ScaleType::kF32:
        scales.half[h] = _mm512_load_ps(p + h * 64);
        break;
      case ScaleType::kF16:
        scales.half[h] =
            _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p + h * 32)));
        break;
      case ScaleType::kBF16:
        scales.half[h] = _mm512_castsi512_ps(_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(p + h * 32))),
            16));
        break;
      case ScaleType::kE8M0: {
        const __m512i code =
            _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p + h * 16)));
        // 2^(c - 127); c = 0 is half of the smallest normal number.
        const __m512i bits =
            _mm512_max_epi32(_mm512_slli_epi32(code, 23), _mm512_set1_epi32(1 << 22));
        scales.half[h] = _mm512_castsi512_ps(bits);
        break;
      }
      case ScaleType::kE4M3: {
        const __m512i code = load_e4m3(p + h * 16);
        scales.half[h] = _mm512_or_ps(e4m3_magnitude(code),
                                      _mm512_castsi512_ps(_mm512_and_si512(
                                          code, _mm512_set1_epi32(static_cast<int>(0x80000000u)))));
        break;
      }
      case ScaleType::kInt8:
        scales.half[h] = _mm512_cvtepi32_ps(
            _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p + h * 16))));
        break;
      case ScaleType::kNone:
        scales.half[h] = _mm512_set1_ps(1.0F);
        break;
    }
  }
  return scales;
}

// The factors of whole sums, one where the format has none.
[[maybe_unused]] Scales output_scales(const std::byte* data, const CodedPanel& panel) {
  if (panel.format.output_scale) return load_scales(data + panel.output_scales, ScaleType::kF32);
  const __m512 one = _mm512_set1_ps(1.0F);
  return {{one, one}};
}

// Times the f16 values of group g's super-group: exact, 8 by 11 bits.
void multiply_supers(Scales& scales, const CodedPanel& panel, const std::byte* supers, int64_t g) {
  const Scales super = load_scales(supers + (g >> panel.super_shift) * 64, ScaleType::kF16);
  scales.half[0] = _mm512_mul_ps(scales.half[0], super.half[0]);
  scales.half[1] = _mm512_mul_ps(scales.half[1], super.half[1]);
}

// The minimums of group g.
[[maybe_unused]] Scales load_minimums(const std::byte* data, const CodedPanel& panel, int64_t g) {
  Scales minimums = load_scales(data + panel.minimums + g * panel.scale_bytes, panel.format.scale);
  if (panel.format.super_group > 0) {
    multiply_supers(minimums, panel, data + panel.super_minimums, g);
  }
  return minimums;
}

// Zero points of 16 lanes.
[[maybe_unused]] __m512i load_zero_codes(const std::byte* p) {
  return _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}

// Those of 32 lanes as f32.
[[maybe_unused]] Scales load_zeros(const std::byte* p) {
  Scales zeros;
  for (int h = 0; h < 2; ++h)
    zeros.half[h] = _mm512_cvtepi32_ps(load_zero_codes(p + h * 16));
  return zeros;
}

}  // namespace
}  // namespace gantry::avx512
