// The codes, scales and minimums of ggml's blocks, at the offsets that ggml_types.cpp gives. Codes
// of fewer than 4 bits and minimums are written so that the kernels' formula, (code * scale) -
// minimum, rounds as ggml's own.

#include "loader/encodings/ggml_codes.h"

#include "loader/encodings/ggml_block_bits.h"

namespace gantry {
namespace {

template <typename Code>
void set_codes(GgmlBlock& parts, int count, const Code& code) {
  for (int i = 0; i < count; ++i)
    parts.codes[i] = static_cast<uint8_t>(code(i));
}

// d, m (which ggml adds) and 32 codes.
template <typename Code>
void set_small(GgmlBlock& parts, const std::byte* block, bool minimum, const Code& code) {
  parts.scale = half_at(block, 0);
  parts.minimum = minimum ? -half_at(block, 2) : 0.0F;
  set_codes(parts, kSmall, code);
}

// d, dmin, 8 scales and minimums of 6 bits, 256 codes.
template <typename Code>
void set_with_mins(GgmlBlock& parts, const std::byte* block, const Code& code) {
  parts.scale = half_at(block, 0);
  parts.minimum = half_at(block, 2);
  for (int j = 0; j < 8; ++j) {
    const auto [scale, min] = k_scale(block + 4, j);
    parts.scales[j] = static_cast<int8_t>(scale);
    parts.minimums[j] = static_cast<int8_t>(min);
  }
  set_codes(parts, kSuper, code);
}

}  // namespace

void split_q4_0(const std::byte* block, GgmlBlock& parts) {
  set_small(parts, block, false, [=](int i) { return nibble(block + 2, i) ^ 8; });
}

void split_q4_1(const std::byte* block, GgmlBlock& parts) {
  set_small(parts, block, true, [=](int i) { return nibble(block + 4, i); });
}

void split_q5_0(const std::byte* block, GgmlBlock& parts) {
  set_small(parts, block, false, [=](int i) { return five_bits(block + 2, i) - 16; });
}

void split_q5_1(const std::byte* block, GgmlBlock& parts) {
  set_small(parts, block, true, [=](int i) { return five_bits(block + 4, i); });
}

void split_q8_0(const std::byte* block, GgmlBlock& parts) {
  set_small(parts, block, false, [=](int i) { return signed_at(block, 2 + i); });
}

void split_q2_k(const std::byte* block, GgmlBlock& parts) {
  parts.scale = half_at(block, 80);
  parts.minimum = half_at(block, 82);
  for (int g = 0; g < 16; ++g) {
    parts.scales[g] = static_cast<int8_t>(byte_at(block, g) & 15);
    parts.minimums[g] = static_cast<int8_t>(byte_at(block, g) >> 4);
  }
  set_codes(parts, kSuper, [=](int i) { return two_bits(block + 16, i); });
}

void split_q3_k(const std::byte* block, GgmlBlock& parts) {
  parts.scale = half_at(block, 108);
  for (int g = 0; g < 16; ++g)
    parts.scales[g] = static_cast<int8_t>(q3_k_scale(block + 96, g));
  set_codes(parts, kSuper, [=](int i) { return q3_k_code(block, i) & 15; });
}

void split_q4_k(const std::byte* block, GgmlBlock& parts) {
  set_with_mins(parts, block, [=](int i) { return k_nibble(block + 16, i); });
}

void split_q5_k(const std::byte* block, GgmlBlock& parts) {
  set_with_mins(parts, block, [=](int i) { return q5_k_code(block, i); });
}

void split_q6_k(const std::byte* block, GgmlBlock& parts) {
  parts.scale = half_at(block, 208);
  for (int g = 0; g < 16; ++g)
    parts.scales[g] = static_cast<int8_t>(signed_at(block, 192 + g));
  set_codes(parts, kSuper, [=](int i) { return q6_k_code(block, i); });
}

void split_iq4_nl(const std::byte* block, GgmlBlock& parts) {
  set_small(parts, block, false, [=](int i) { return nibble(block + 2, i); });
}

void split_iq4_xs(const std::byte* block, GgmlBlock& parts) {
  parts.scale = half_at(block, 0);
  for (int j = 0; j < 8; ++j)
    parts.scales[j] = static_cast<int8_t>(iq4_xs_scale(block, j));
  set_codes(parts, kSuper, [=](int i) { return nibble(block + 8 + i / 32 * 16, i % 32); });
}

void split_mxfp4(const std::byte* block, GgmlBlock& parts) {
  parts.scale = static_cast<float>(byte_at(block, 0));
  set_codes(parts, kSmall, [=](int i) { return nibble(block + 1, i); });
}

}  // namespace gantry
