#pragma once

// Rounding of f32 to the values of the small number formats, kept in f32. Choices are made between
// bits, not between floats: loops over floats that compare are not vectorised, because a comparison
// may trap. The bits of magnitudes are ordered as the magnitudes are, with NaN on top.

#include <algorithm>
#include <bit>
#include <cstdint>

namespace gantry {

namespace round_formats {

inline constexpr uint32_t kInfinityBits = 0x7f800000u;

inline uint32_t bits_of(float value) noexcept { return std::bit_cast<uint32_t>(value); }

/// a < b ? x : y, of values that both exist: no branch, so that no operation of x or y may trap.
inline uint32_t if_less(uint32_t a, uint32_t b, uint32_t x, uint32_t y) noexcept {
  const uint32_t mask = 0u - static_cast<uint32_t>(a < b);
  return (x & mask) | (y & ~mask);
}

/// The magnitude rounded to a multiple of the last place of `magic`, ties to even.
inline uint32_t round_at(uint32_t magnitude, float magic) noexcept {
  return bits_of((std::bit_cast<float>(magnitude) + magic) - magic);
}

/// The sign of `value`, and `rounded` unless it is NaN.
inline float with_sign(float value, uint32_t rounded) noexcept {
  const uint32_t raw = bits_of(value) & 0x7fffffffu;
  const uint32_t sign = bits_of(value) & 0x80000000u;
  return std::bit_cast<float>(sign | if_less(kInfinityBits, raw, raw, rounded));
}

/// The magnitude's bits, at most those of `limit`.
inline uint32_t magnitude_up_to(float value, float limit) noexcept {
  return std::min(bits_of(value) & 0x7fffffffu, bits_of(limit));
}

}  // namespace round_formats

/// The nearest e4m3fn value, ties to the even mantissa; beyond +-448 the largest one (saturated,
/// infinity too); NaN stays NaN.
/// @source OCP 8-bit floating point specification 1.0, with the saturation of torch's clamp + cast
inline float round_to_e4m3(float value) noexcept {
  using namespace round_formats;
  const uint32_t magnitude = magnitude_up_to(value, 448.0F);
  // Normal values keep 3 of 23 mantissa bits.
  const uint32_t normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) & 0xfff00000u;
  // Below 2^-6 the values are multiples of 2^-9, which is an f32's last place at 1.5 * 2^14.
  const uint32_t subnormal = round_at(magnitude, 0x1.8p14F);
  return with_sign(value, if_less(magnitude, bits_of(0x1p-6F), subnormal, normal));
}

/// The nearest e2m1 value, ties to the even mantissa; beyond +-6 the largest one; NaN stays NaN.
/// @source vLLM's cast_to_fp4: 0.25 -> 0, 0.75 -> 1, 1.25 -> 1, 1.75 -> 2, 2.5 -> 2, 3.5 -> 4, 5 ->
/// 4
inline float round_to_e2m1(float value) noexcept {
  using namespace round_formats;
  const uint32_t magnitude = magnitude_up_to(value, 6.0F);
  // Multiples of 0.5 below 2, of 1 below 4, of 2 from there on: the last places of these three.
  const uint32_t halves = round_at(magnitude, 0x1.8p22F);
  const uint32_t ones = round_at(magnitude, 0x1.8p23F);
  const uint32_t twos = round_at(magnitude, 0x1.8p24F);
  const uint32_t below_4 = if_less(magnitude, bits_of(2.0F), halves, ones);
  return with_sign(value, if_less(magnitude, bits_of(4.0F), below_4, twos));
}

/// The nearest integer in [-128, 127], ties to even; NaN stays NaN.
inline float round_to_int8(float value) noexcept {
  using namespace round_formats;
  const uint32_t negative = bits_of(value) >> 31;
  const uint32_t limit = bits_of(127.0F) + negative * (bits_of(128.0F) - bits_of(127.0F));
  const uint32_t magnitude = std::min(bits_of(value) & 0x7fffffffu, limit);
  return with_sign(value, round_at(magnitude, 0x1.8p23F));
}

}  // namespace gantry
