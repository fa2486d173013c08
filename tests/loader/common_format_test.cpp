// Matrices of different schemes in one format: the same weights, bit by bit.

#include "loader/encodings/common_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/grouped_gemm/packed_layout.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using enum WeightElement;

CodedMatrix random_matrix(const WeightFormat& format, SeededRng& rng) {
  CodedMatrix m{.format = format, .size = {12, 192}};
  m.own_codes(m.nibbles() ? 96 : 192);
  for (uint8_t& code : m.codes)
    code = static_cast<uint8_t>(rng.integer(0, 255) & 0x77);  // no NaN
  // Few significant bits: products are exact, in whatever order.
  const auto power = [&] { return std::ldexp(1.0F, static_cast<int>(rng.integer(-3, 3))); };
  for (int64_t i = 0; i < m.size.out * m.num_groups(); ++i) {
    const bool integer = format.scale == ScaleType::kInt8;
    m.scales.push_back(integer ? static_cast<float>(rng.integer(-31, 31)) : power());
    if (format.zero_points) m.zeros.push_back(static_cast<int8_t>(rng.integer(-8, 7)));
    if (format.minimums) {
      m.minimums.push_back(integer ? static_cast<float>(rng.integer(0, 31)) : power());
    }
  }
  for (int64_t i = 0; i < m.size.out * m.num_supers(); ++i) {
    m.super_scales.push_back(power());
    if (format.minimums) m.super_minimums.push_back(power());
  }
  for (int64_t o = 0; format.output_scale && o < m.size.out; ++o)
    m.output_scales.push_back(power());
  return m;
}

const std::vector<WeightFormat>& formats() {
  static const std::vector<WeightFormat> all = {
      {kInt4, ScaleType::kF16, 128},
      {kInt4, ScaleType::kF16, 32, /*zero_points=*/true},
      {.element = kInt4, .output_scale = true},
      {kInt8, ScaleType::kBF16, 128},
      {.element = kInt8, .output_scale = true},
      {kE2M1, ScaleType::kE8M0, 32},
      {kE2M1, ScaleType::kE4M3, 16, false, true},
      {kE4M3, ScaleType::kF32, 128},
      {.element = kE4M3, .output_scale = true},
      {kUInt4, ScaleType::kF16, 32, false, false, /*minimums=*/true},
      {kUInt4, ScaleType::kInt8, 32, false, false, true, 64},
      {kInt8, ScaleType::kInt8, 16, false, false, false, 64},
      {kIQ4, ScaleType::kF16, 32}};
  return all;
}

TEST(CommonFormatTest, HoldsTheWeightsOfBothBitByBit) {
  SeededRng rng;
  int pairs = 0;
  for (const WeightFormat& a : formats()) {
    for (const WeightFormat& b : formats()) {
      const auto common = common_format(a, b);
      if (!common) continue;
      ++pairs;
      EXPECT_EQ(common, common_format(b, a)) << to_string(a) << ", " << to_string(b);
      EXPECT_EQ(common, common_format(a, *common)) << to_string(a) << ", " << to_string(b);
      for (const WeightFormat& own : {a, b}) {
        const CodedMatrix matrix = random_matrix(own, rng);
        const CodedMatrix converted = convert_format(matrix, *common);
        EXPECT_EQ(converted.format, *common);
        EXPECT_EQ(dequantize(converted), dequantize(matrix))
            << to_string(own) << " as " << to_string(*common) << ", seed " << rng.seed();
      }
    }
  }
  EXPECT_GE(pairs, 100);  // of 169: FP8 beside integers of 8 bits has no common element
}

TEST(CommonFormatTest, TakesTheWiderElementAndTheSmallerGroup) {
  EXPECT_EQ(common_format({kInt4, ScaleType::kF16, 128}, {kInt8, ScaleType::kF16, 32}),
            (WeightFormat{kInt8, ScaleType::kF16, 32}));
  EXPECT_EQ(common_format({kInt4, ScaleType::kF16, 128}, {kE2M1, ScaleType::kE8M0, 32}),
            (WeightFormat{kE4M3, ScaleType::kF32, 32}));
  EXPECT_EQ(common_format({kUInt4, ScaleType::kInt8, 32, false, false, true, 256},
                          {kInt8, ScaleType::kInt8, 16, false, false, false, 256}),
            (WeightFormat{kInt8, ScaleType::kInt8, 16, false, false, true, 256}));
}

TEST(CommonFormatTest, ThereMayBeNone) {
  EXPECT_FALSE(common_format({kE4M3, ScaleType::kF32, 128}, {kInt8, ScaleType::kF32, 128}));
  EXPECT_FALSE(common_format({kNF4, ScaleType::kF32, 64}, {kInt4, ScaleType::kF32, 64}));
  EXPECT_FALSE(common_format({kE5M2, ScaleType::kF32, 128}, {kE4M3, ScaleType::kF32, 128}));
  EXPECT_FALSE(common_format({kInt4, ScaleType::kF32, 24}, {kInt4, ScaleType::kF32, 20}));
}

}  // namespace
}  // namespace gantry::test
