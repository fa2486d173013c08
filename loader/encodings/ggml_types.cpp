// The table of ggml's types and the formula of each block format.
//
// A block is read as bytes at the offsets that the comments give. q4_0 to q5_1, iq4_nl and mxfp4
// have 32 elements: byte i of their nibbles holds element i (low) and element 16 + i (high). The K
// formats have 256 elements with scales of their own for each 16 or 32.

#include "loader/encodings/ggml_types.h"

#include <array>
#include <bit>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"

namespace gantry {
namespace {

constexpr int kSmall = 32;   // elements of a block of the older formats
constexpr int kSuper = 256;  // of the K formats

// Values of the 4-bit codes of iq4_nl and iq4_xs, as integers.
constexpr std::array<int, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                            1,    13,   25,  38,  53,  69,  89,  113};
// e2m1 values, doubled so that they are integers; the scale is halved instead.
constexpr std::array<int, 16> kFp4Doubled = {0, 1,  2,  3,  4,  6,  8,  12,
                                             0, -1, -2, -3, -4, -6, -8, -12};

int byte_at(const std::byte* block, int offset) { return static_cast<int>(block[offset]); }
int signed_at(const std::byte* block, int offset) { return static_cast<int8_t>(block[offset]); }

float half_at(const std::byte* block, int offset) {
  uint16_t bits = 0;
  std::memcpy(&bits, block + offset, sizeof(bits));
  return f16_to_f32(bits);
}

uint32_t word_at(const std::byte* block, int offset) {
  uint32_t word = 0;
  std::memcpy(&word, block + offset, sizeof(word));
  return word;
}

// Code i of 32 in 16 bytes.
int nibble(const std::byte* bytes, int i) {
  return i < 16 ? byte_at(bytes, i) & 15 : byte_at(bytes, i - 16) >> 4;
}

// d f16, 16 bytes of nibbles: d * (q - 8)
void decode_q4_0(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int i = 0; i < kSmall; ++i)
    values[i] = d * static_cast<float>(nibble(block + 2, i) - 8);
}

// d f16, m f16, nibbles: d * q + m
void decode_q4_1(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  const float m = half_at(block, 2);
  for (int i = 0; i < kSmall; ++i) {
    const float product = d * static_cast<float>(nibble(block + 4, i));
    values[i] = product + m;
  }
}

// The fifth bits of 32 codes stand in one word before their nibbles.
int five_bits(const std::byte* high, int i) {
  return nibble(high + 4, i) | static_cast<int>((word_at(high, 0) >> i & 1) << 4);
}

// d f16, fifth bits, nibbles: d * (q - 16)
void decode_q5_0(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int i = 0; i < kSmall; ++i)
    values[i] = d * static_cast<float>(five_bits(block + 2, i) - 16);
}

// d f16, m f16, fifth bits, nibbles: d * q + m
void decode_q5_1(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  const float m = half_at(block, 2);
  for (int i = 0; i < kSmall; ++i) {
    const float product = d * static_cast<float>(five_bits(block + 4, i));
    values[i] = product + m;
  }
}

// d f16, 32 signed bytes: d * q
void decode_q8_0(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int i = 0; i < kSmall; ++i)
    values[i] = d * static_cast<float>(signed_at(block, 2 + i));
}

// 2-bit codes of 256 elements in 64 bytes: each half (128 elements) has 32 bytes, whose bits 2 s
// and 2 s + 1 are those of elements 32 s to 32 s + 31.
int two_bits(const std::byte* codes, int i) {
  const int in_half = i % 128;
  return byte_at(codes, i / 128 * 32 + in_half % 32) >> (in_half / 32 * 2) & 3;
}

// 16 bytes with a scale (low) and a minimum (high) for 16 elements each, 64 bytes of 2-bit codes,
// d f16, dmin f16: (d * sc) * q - (dmin * m)
void decode_q2_k(const std::byte* block, float* values) {
  const float d = half_at(block, 80);
  const float dmin = half_at(block, 82);
  for (int i = 0; i < kSuper; ++i) {
    const int scales = byte_at(block, i / 16);
    const float scale = d * static_cast<float>(scales & 15);
    const float offset = dmin * static_cast<float>(scales >> 4);
    const float product = scale * static_cast<float>(two_bits(block + 16, i));
    values[i] = product - offset;
  }
}

// Scale g of 16 of q3_k: 4 low bits in bytes 0 to 7, 2 high bits in bytes 8 to 11, less 32.
int q3_k_scale(const std::byte* scales, int g) {
  const int low = byte_at(scales, g % 8) >> (g / 8 * 4) & 15;
  const int high = byte_at(scales, 8 + g % 4) >> (g / 4 * 2) & 3;
  return (low | high << 4) - 32;
}

// 32 bytes of third bits (bit i / 32 of byte i % 32; set means that nothing is subtracted), 64
// bytes of 2-bit codes, 12 bytes of scales, d f16: (d * sc) * (q - (bit ? 0 : 4))
void decode_q3_k(const std::byte* block, float* values) {
  const float d = half_at(block, 108);
  for (int i = 0; i < kSuper; ++i) {
    const float scale = d * static_cast<float>(q3_k_scale(block + 96, i / 16));
    const bool third = (byte_at(block, i % 32) >> (i / 32) & 1) != 0;
    values[i] = scale * static_cast<float>(two_bits(block + 32, i) - (third ? 0 : 4));
  }
}

// 6-bit scale and minimum of sub-block j of 8, in 12 bytes: those of 0 to 3 are the low 6 bits of
// bytes j and j + 4; of 4 to 7 the nibbles of byte j + 4 and the top bits of bytes j - 4 and j.
struct ScaleAndMin {
  int scale;
  int min;
};
ScaleAndMin k_scale(const std::byte* packed, int j) {
  if (j < 4) return {byte_at(packed, j) & 63, byte_at(packed, j + 4) & 63};
  const int low = byte_at(packed, j + 4);
  return {(low & 15) | byte_at(packed, j - 4) >> 6 << 4, low >> 4 | byte_at(packed, j) >> 6 << 4};
}

// Code i of 256 in 128 bytes: each 32 bytes hold 64 elements, the first 32 in the low nibbles.
int k_nibble(const std::byte* codes, int i) {
  const int byte = byte_at(codes, i / 64 * 32 + i % 32);
  return i % 64 < 32 ? byte & 15 : byte >> 4;
}

// d f16, dmin f16, 12 bytes of scales and minima: (d * sc) * q - (dmin * m) for codes q
template <typename Code>
void decode_with_mins(const std::byte* block, float* values, Code code) {
  const float d = half_at(block, 0);
  const float dmin = half_at(block, 2);
  for (int i = 0; i < kSuper; ++i) {
    const auto [sc, m] = k_scale(block + 4, i / 32);
    const float scale = d * static_cast<float>(sc);
    const float offset = dmin * static_cast<float>(m);
    const float product = scale * static_cast<float>(code(i));
    values[i] = product - offset;
  }
}

// ... 128 bytes of nibbles
void decode_q4_k(const std::byte* block, float* values) {
  decode_with_mins(block, values, [=](int i) { return k_nibble(block + 16, i); });
}

// ... 32 bytes of fifth bits (bit i / 32 of byte i % 32), 128 bytes of nibbles
void decode_q5_k(const std::byte* block, float* values) {
  decode_with_mins(block, values, [=](int i) {
    return k_nibble(block + 48, i) | (byte_at(block, 16 + i % 32) >> (i / 32) & 1) << 4;
  });
}

// 128 bytes of low nibbles (each 64 bytes hold 128 elements, the first 64 low), 64 bytes of 2 high
// bits, 16 signed scales, d f16: (d * sc) * (q - 32)
void decode_q6_k(const std::byte* block, float* values) {
  const float d = half_at(block, 208);
  for (int i = 0; i < kSuper; ++i) {
    const int byte = byte_at(block, i / 128 * 64 + i % 64);
    const int low = i % 128 < 64 ? byte & 15 : byte >> 4;
    const int code = (low | two_bits(block + 128, i) << 4) - 32;
    const float scale = d * static_cast<float>(signed_at(block, 192 + i / 16));
    values[i] = scale * static_cast<float>(code);
  }
}

// d f16, nibbles: d * value(q)
void decode_iq4_nl(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int i = 0; i < kSmall; ++i)
    values[i] = d * static_cast<float>(kIq4Values[static_cast<size_t>(nibble(block + 2, i))]);
}

// d f16, 2 high bits of 8 scales in a u16, their 4 low bits in 4 bytes, nibbles of 8 blocks of 32:
// (d * (sc - 32)) * value(q)
void decode_iq4_xs(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  const int high = byte_at(block, 2) | byte_at(block, 3) << 8;
  for (int i = 0; i < kSuper; ++i) {
    const int j = i / 32;
    const int low = byte_at(block, 4 + j / 2) >> (j % 2 * 4) & 15;
    const float scale = d * static_cast<float>((low | (high >> (2 * j) & 3) << 4) - 32);
    const int code = nibble(block + 8 + 16 * j, i % 32);
    values[i] = scale * static_cast<float>(kIq4Values[static_cast<size_t>(code)]);
  }
}

// exponent e (e8m0), nibbles of e2m1: 2^(e - 128) * doubled value. 255 is no NaN here: ggml
// computes 2^127 of it.
void decode_mxfp4(const std::byte* block, float* values) {
  const auto e = static_cast<uint32_t>(byte_at(block, 0));
  const auto d = std::bit_cast<float>(e < 2 ? 0x00200000U << e : (e - 1) << 23);
  for (int i = 0; i < kSmall; ++i)
    values[i] = d * static_cast<float>(kFp4Doubled[static_cast<size_t>(nibble(block + 1, i))]);
}

constexpr GgmlType plain(uint32_t id, std::string_view name, DType dtype) {
  return {.id = id, .name = name, .block_bytes = size_of(dtype), .dtype = dtype};
}

constexpr GgmlType kTypes[] = {
    plain(0, "f32", DType::kF32),
    plain(1, "f16", DType::kF16),
    plain(30, "bf16", DType::kBF16),
    plain(28, "f64", DType::kF64),
    plain(24, "i8", DType::kI8),
    plain(25, "i16", DType::kI16),
    plain(26, "i32", DType::kI32),
    plain(27, "i64", DType::kI64),
    {2, "q4_0", 32, 18, {}, decode_q4_0},
    {3, "q4_1", 32, 20, {}, decode_q4_1},
    {6, "q5_0", 32, 22, {}, decode_q5_0},
    {7, "q5_1", 32, 24, {}, decode_q5_1},
    {8, "q8_0", 32, 34, {}, decode_q8_0},
    {10, "q2_k", 256, 84, {}, decode_q2_k},
    {11, "q3_k", 256, 110, {}, decode_q3_k},
    {12, "q4_k", 256, 144, {}, decode_q4_k},
    {13, "q5_k", 256, 176, {}, decode_q5_k},
    {14, "q6_k", 256, 210, {}, decode_q6_k},
    {20, "iq4_nl", 32, 18, {}, decode_iq4_nl},
    {23, "iq4_xs", 256, 136, {}, decode_iq4_xs},
    {39, "mxfp4", 32, 17, {}, decode_mxfp4},
    // Known by name and size only.
    {9, "q8_1", 32, 36},
    {15, "q8_k", 256, 292},
    {16, "iq2_xxs", 256, 66},
    {17, "iq2_xs", 256, 74},
    {18, "iq3_xxs", 256, 98},
    {19, "iq1_s", 256, 50},
    {21, "iq3_s", 256, 110},
    {22, "iq2_s", 256, 82},
    {29, "iq1_m", 256, 56},
    {34, "tq1_0", 256, 54},
    {35, "tq2_0", 256, 66},
    {40, "nvfp4", 64, 36},
};

}  // namespace

const GgmlType* find_ggml_type(uint32_t id) noexcept {
  for (const GgmlType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const GgmlType* find_ggml_type(std::string_view name) noexcept {
  for (const GgmlType& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

std::string ggml_type_name(uint32_t id) {
  const GgmlType* type = find_ggml_type(id);
  return type == nullptr ? fmt::format("type {}", id) : std::string(type->name);
}

void decode_ggml_blocks(const GgmlType& type, const std::byte* blocks, int64_t num_blocks,
                        float* values) {
  GANTRY_CHECK(type.decode != nullptr, ErrorCode::kUnsupported, "ggml type {} cannot be read",
               type.name);
  for (int64_t b = 0; b < num_blocks; ++b)
    type.decode(blocks + b * type.block_bytes, values + b * type.block_elements);
}

}  // namespace gantry
