#pragma once

// Conversions between f32 and the 16-bit float types, exact in the widening direction and rounded
// to nearest-even in the narrowing one. NaN stays NaN. Plain integer code, no ISA extension: safe
// to include anywhere.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"

namespace gantry GANTRY_API {

inline float bf16_to_f32(uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t f32_to_bf16(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x0040u);  // keep NaN a (quiet) NaN
  }
  const uint32_t round_up = 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>((bits + round_up) >> 16);
}

inline float f16_to_f32(uint16_t bits) noexcept {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1fu) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  // Zero and subnormals: mantissa * 2^-24, exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

inline uint16_t f32_to_f16(float value) noexcept {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: round |value| * 2^24 to an integer, ties to even.
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyintf(scaled)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// Rounds to the nearest bf16 and back.
inline float round_to_bf16(float value) noexcept { return bf16_to_f32(f32_to_bf16(value)); }

/// Reads element `index` of a plain float array (f32, f16 or bf16) as f32, exactly.
inline float load_as_f32(const void* data, DType dtype, int64_t index) noexcept {
  const auto* bytes = static_cast<const unsigned char*>(data);
  if (dtype == DType::kF32) {
    float value = 0;
    std::memcpy(&value, bytes + index * 4, 4);
    return value;
  }
  uint16_t half = 0;
  std::memcpy(&half, bytes + index * 2, 2);
  return dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

/// Widens `count` plain floats (f32, f16 or bf16) to f32, exactly.
void convert_to_f32(const void* source, DType dtype, int64_t count, float* destination) noexcept;

/// The first NaN or infinity among `count` values of any float type, or -1.
int64_t find_non_finite(const void* data, DType dtype, int64_t count) noexcept;

/// Rounds `count` f32 to `dtype` (f32, f16 or bf16), to nearest-even.
void convert_from_f32(const float* source, int64_t count, DType dtype, void* destination) noexcept;

}  // namespace gantry
