// The table of ggml's types and the formula of each block format.
//
// A block is read as bytes at the offsets that the comments give. q4_0 to q5_1, iq4_nl and mxfp4
// have 32 elements: byte i of their nibbles holds element i (low) and element 16 + i (high). The K
// formats have 256 elements with scales of their own for each 16 or 32.

#include "loader/encodings/ggml_types.h"

#include <array>
#include <bit>

#include "kernels/base/check.h"
#include "kernels/quant/code_books.h"
#include "loader/encodings/ggml_block_bits.h"
#include "loader/encodings/ggml_codes.h"

namespace gantry {
namespace {

// e2m1 values, doubled so that they are integers; the scale is halved instead.
constexpr std::array<int, 16> kFp4Doubled = {0, 1,  2,  3,  4,  6,  8,  12,
                                             0, -1, -2, -3, -4, -6, -8, -12};

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

// 32 bytes of third bits (bit i / 32 of byte i % 32; set means that nothing is subtracted), 64
// bytes of 2-bit codes, 12 bytes of scales, d f16: (d * sc) * (q - (bit ? 0 : 4))
void decode_q3_k(const std::byte* block, float* values) {
  const float d = half_at(block, 108);
  for (int i = 0; i < kSuper; ++i) {
    const float scale = d * static_cast<float>(q3_k_scale(block + 96, i / 16));
    values[i] = scale * static_cast<float>(q3_k_code(block, i));
  }
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
  decode_with_mins(block, values, [=](int i) { return q5_k_code(block, i); });
}

// 128 bytes of low nibbles (each 64 bytes hold 128 elements, the first 64 low), 64 bytes of 2 high
// bits, 16 signed scales, d f16: (d * sc) * (q - 32)
void decode_q6_k(const std::byte* block, float* values) {
  const float d = half_at(block, 208);
  for (int i = 0; i < kSuper; ++i) {
    const float scale = d * static_cast<float>(signed_at(block, 192 + i / 16));
    values[i] = scale * static_cast<float>(q6_k_code(block, i));
  }
}

// d f16, nibbles: d * value(q)
void decode_iq4_nl(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int i = 0; i < kSmall; ++i)
    values[i] = d * static_cast<float>(kIQ4Values[nibble(block + 2, i)]);
}

// d f16, 2 high bits of 8 scales in a u16, their 4 low bits in 4 bytes, nibbles of 8 blocks of 32:
// (d * (sc - 32)) * value(q)
void decode_iq4_xs(const std::byte* block, float* values) {
  const float d = half_at(block, 0);
  for (int i = 0; i < kSuper; ++i) {
    const int j = i / 32;
    const float scale = d * static_cast<float>(iq4_xs_scale(block, j));
    values[i] = scale * static_cast<float>(kIQ4Values[nibble(block + 8 + 16 * j, i % 32)]);
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

// One f16 scale for 32 elements.
constexpr WeightFormat halves(WeightElement element, bool minimums = false) {
  return {.element = element, .scale = ScaleType::kF16, .group = kSmall, .minimums = minimums};
}

// Integer scales, times the block's f16.
constexpr WeightFormat two_levels(WeightElement element, int64_t group, bool minimums = false) {
  return {.element = element,
          .scale = ScaleType::kInt8,
          .group = group,
          .minimums = minimums,
          .super_group = kSuper};
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
    {2, "q4_0", 32, 18, {}, decode_q4_0, halves(WeightElement::kInt4), split_q4_0},
    {3,
     "q4_1",
     32,
     20,
     {},
     decode_q4_1,
     halves(WeightElement::kUInt4, /*minimums=*/true),
     split_q4_1},
    {6, "q5_0", 32, 22, {}, decode_q5_0, halves(WeightElement::kInt8), split_q5_0},
    {7,
     "q5_1",
     32,
     24,
     {},
     decode_q5_1,
     halves(WeightElement::kInt8, /*minimums=*/true),
     split_q5_1},
    {8, "q8_0", 32, 34, {}, decode_q8_0, halves(WeightElement::kInt8), split_q8_0},
    {10,
     "q2_k",
     256,
     84,
     {},
     decode_q2_k,
     two_levels(WeightElement::kInt4, 16, /*minimums=*/true),
     split_q2_k},
    {11, "q3_k", 256, 110, {}, decode_q3_k, two_levels(WeightElement::kInt4, 16), split_q3_k},
    {12,
     "q4_k",
     256,
     144,
     {},
     decode_q4_k,
     two_levels(WeightElement::kUInt4, 32, /*minimums=*/true),
     split_q4_k},
    {13,
     "q5_k",
     256,
     176,
     {},
     decode_q5_k,
     two_levels(WeightElement::kInt8, 32, /*minimums=*/true),
     split_q5_k},
    {14, "q6_k", 256, 210, {}, decode_q6_k, two_levels(WeightElement::kInt8, 16), split_q6_k},
    {20, "iq4_nl", 32, 18, {}, decode_iq4_nl, halves(WeightElement::kIQ4), split_iq4_nl},
    {23, "iq4_xs", 256, 136, {}, decode_iq4_xs, two_levels(WeightElement::kIQ4, 32), split_iq4_xs},
    {39,
     "mxfp4",
     32,
     17,
     {},
     decode_mxfp4,
     {WeightElement::kE2M1, ScaleType::kE8M0, kSmall},
     split_mxfp4},
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
