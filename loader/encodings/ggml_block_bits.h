#pragma once

// Where the bits of ggml's blocks are. Internal.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/base/float_convert.h"

namespace gantry {

inline constexpr int kSmall = 32;   // elements of a block of the older formats
inline constexpr int kSuper = 256;  // of the K formats

inline int byte_at(const std::byte* block, int offset) { return static_cast<int>(block[offset]); }
inline int signed_at(const std::byte* block, int offset) {
  return static_cast<int8_t>(block[offset]);
}

inline float half_at(const std::byte* block, int offset) {
  uint16_t bits = 0;
  std::memcpy(&bits, block + offset, sizeof(bits));
  return f16_to_f32(bits);
}

inline uint32_t word_at(const std::byte* block, int offset) {
  uint32_t word = 0;
  std::memcpy(&word, block + offset, sizeof(word));
  return word;
}

// Code i of 32 in 16 bytes.
inline int nibble(const std::byte* bytes, int i) {
  return i < 16 ? byte_at(bytes, i) & 15 : byte_at(bytes, i - 16) >> 4;
}

// The fifth bits of 32 codes stand in one word before their nibbles.
inline int five_bits(const std::byte* high, int i) {
  return nibble(high + 4, i) | static_cast<int>((word_at(high, 0) >> i & 1) << 4);
}

// 2-bit codes of 256 elements in 64 bytes: each half (128 elements) has 32 bytes, whose bits 2 s
// and 2 s + 1 are those of elements 32 s to 32 s + 31.
inline int two_bits(const std::byte* codes, int i) {
  const int in_half = i % 128;
  return byte_at(codes, i / 128 * 32 + in_half % 32) >> (in_half / 32 * 2) & 3;
}

// Scale g of 16 of q3_k: 4 low bits in bytes 0 to 7, 2 high bits in bytes 8 to 11, less 32.
inline int q3_k_scale(const std::byte* scales, int g) {
  const int low = byte_at(scales, g % 8) >> (g / 8 * 4) & 15;
  const int high = byte_at(scales, 8 + g % 4) >> (g / 4 * 2) & 3;
  return (low | high << 4) - 32;
}

// 6-bit scale and minimum of sub-block j of 8, in 12 bytes: those of 0 to 3 are the low 6 bits of
// bytes j and j + 4; of 4 to 7 the nibbles of byte j + 4 and the top bits of bytes j - 4 and j.
struct ScaleAndMin {
  int scale;
  int min;
};
inline ScaleAndMin k_scale(const std::byte* packed, int j) {
  if (j < 4) return {byte_at(packed, j) & 63, byte_at(packed, j + 4) & 63};
  const int low = byte_at(packed, j + 4);
  return {(low & 15) | byte_at(packed, j - 4) >> 6 << 4, low >> 4 | byte_at(packed, j) >> 6 << 4};
}

// Code i of 256 in 128 bytes: each 32 bytes hold 64 elements, the first 32 in the low nibbles.
inline int k_nibble(const std::byte* codes, int i) {
  const int byte = byte_at(codes, i / 64 * 32 + i % 32);
  return i % 64 < 32 ? byte & 15 : byte >> 4;
}

// The code of q5_k, as stored: its fifth bits stand in 32 bytes, bit i / 32 of byte i % 32.
inline int q5_k_code(const std::byte* block, int i) {
  return k_nibble(block + 48, i) | (byte_at(block, 16 + i % 32) >> (i / 32) & 1) << 4;
}

// The code of q3_k: 2 bits, less 4 where the third bit is not set.
inline int q3_k_code(const std::byte* block, int i) {
  const bool third = (byte_at(block, i % 32) >> (i / 32) & 1) != 0;
  return two_bits(block + 32, i) - (third ? 0 : 4);
}

// The code of q6_k: 128 bytes of low nibbles (each 64 bytes hold 128 elements, the first 64 low),
// 64 bytes of 2 high bits; less 32.
inline int q6_k_code(const std::byte* block, int i) {
  const int byte = byte_at(block, i / 128 * 64 + i % 64);
  const int low = i % 128 < 64 ? byte & 15 : byte >> 4;
  return (low | two_bits(block + 128, i) << 4) - 32;
}

// Scale j of 8 of iq4_xs: 2 high bits in a u16, 4 low bits in 4 bytes; less 32.
inline int iq4_xs_scale(const std::byte* block, int j) {
  const int high = byte_at(block, 2) | byte_at(block, 3) << 8;
  const int low = byte_at(block, 4 + j / 2) >> (j % 2 * 4) & 15;
  return (low | (high >> (2 * j) & 3) << 4) - 32;
}

}  // namespace gantry
