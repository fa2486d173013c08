#pragma once

// Conversions for code that runs on both sides. The host's own (kernels/base/float_convert.h) use
// library functions that device code does not have; a test compares all values of both.

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace gantry {

GANTRY_HD inline float bits_to_f32(uint32_t bits) noexcept {
  return __builtin_bit_cast(float, bits);
}
GANTRY_HD inline uint32_t f32_to_bits(float value) noexcept {
  return __builtin_bit_cast(uint32_t, value);
}

GANTRY_HD inline float bf16_bits_to_f32(uint32_t bits) noexcept { return bits_to_f32(bits << 16); }

/// Rounds to nearest even; NaN stays NaN.
GANTRY_HD inline uint32_t f32_to_bf16_bits(float value) noexcept {
  const uint32_t bits = f32_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x0040u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

GANTRY_HD inline float f16_bits_to_f32(uint32_t bits) noexcept {
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1fu) return bits_to_f32(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bits_to_f32(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return bits_to_f32(sign | f32_to_bits(magnitude));
}

/// Rounds to nearest even; too large becomes infinity; NaN stays NaN.
GANTRY_HD inline uint32_t f32_to_f16_bits(float value) noexcept {
  const uint32_t bits = f32_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 2^(23 - 24) aligns the last bit kept with the last bit of f32.
    const float aligned = bits_to_f32(magnitude) + 0.5f;
    return sign | (f32_to_bits(aligned) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | ((rounded - 0x38000000u) >> 13);
}

/// e4m3fn; NaN (0x7f, 0xff) stays NaN.
GANTRY_HD inline float e4m3_bits_to_f32(uint32_t code) noexcept {
  const uint32_t sign = (code & 0x80u) << 24;
  if ((code & 0x7fu) == 0x7fu) return bits_to_f32(sign | 0x7fc00000u);
  // Exponent and mantissa moved to where f32 has them; the bias is made good by 2^(127 - 7).
  return bits_to_f32(sign | ((code & 0x7fu) << 20)) * 0x1p120f;
}

/// Rounds to the nearest e4m3fn, ties to even; beyond 448 saturates; NaN stays NaN.
GANTRY_HD inline uint32_t f32_to_e4m3_bits(float value) noexcept {
  const uint32_t bits = f32_to_bits(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7fu;
  if (magnitude >= 0x43e80000u) return sign | 0x7eu;  // 464 is half way to what would follow 448
  if (magnitude < 0x3c800000u) {
    // Below 2^-6: adding 2^(23 - 9) aligns the last bit kept with the last bit of f32.
    return sign | (f32_to_bits(bits_to_f32(magnitude) + 16384.0f) - 0x46800000u);
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return sign | ((rounded - 0x3c000000u) >> 20);
}

/// 2^(code - 127); 255 is NaN, 0 the subnormal 2^-127.
GANTRY_HD inline float e8m0_bits_to_f32(uint32_t code) noexcept {
  if (code == 255u) return bits_to_f32(0x7fc00000u);
  return bits_to_f32(code == 0 ? 0x00400000u : code << 23);
}

}  // namespace gantry
