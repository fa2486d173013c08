#pragma once

// Values of the small number formats, exact in f32. Plain integer code: safe to include anywhere.

#include <bit>
#include <cstdint>
#include <limits>

namespace gantry {

/// e4m3fn: 1 sign, 4 exponent (bias 7), 3 mantissa bits; subnormals are m * 2^-9; 0x7f and 0xff are
/// NaN, there is no infinity.
/// @source OCP 8-bit floating point specification 1.0
inline float e4m3_to_f32(uint8_t code) noexcept {
  const auto sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t exponent = (code >> 3) & 0xfu;
  const uint32_t mantissa = code & 0x7u;
  if ((code & 0x7fu) == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9F;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

/// e5m2: 1 sign, 5 exponent (bias 15), 2 mantissa bits, with infinity and NaN as in IEEE 754.
inline float e5m2_to_f32(uint8_t code) noexcept {
  const auto sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t exponent = (code >> 2) & 0x1fu;
  const uint32_t mantissa = code & 0x3u;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-16F;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide = exponent == 0x1fu ? 0xffu : exponent + 112u;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 21));
}

/// e8m0: 2^(code - 127); 255 is NaN. 0 is 2^-127, a subnormal of f32.
/// @source OCP microscaling formats specification 1.0
inline float e8m0_to_f32(uint8_t code) noexcept {
  if (code == 0xffu) return std::numeric_limits<float>::quiet_NaN();
  if (code == 0) return 0x1p-127F;
  return std::bit_cast<float>(static_cast<uint32_t>(code) << 23);
}

/// e2m1 (FP4): codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign.
inline float e2m1_to_f32(uint8_t code) noexcept {
  constexpr float kMagnitudes[8] = {0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F};
  const float magnitude = kMagnitudes[code & 7u];
  return (code & 8u) != 0 ? -magnitude : magnitude;
}

/// The low `bits` bits of a two's complement number.
inline int32_t sign_extend(uint32_t value, int bits) noexcept {
  const auto half = 1u << (bits - 1);
  return static_cast<int32_t>((value ^ half)) - static_cast<int32_t>(half);
}

}  // namespace gantry
