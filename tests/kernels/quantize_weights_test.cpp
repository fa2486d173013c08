// Quantization of weights: the row passes of every instruction set, the scales, and what must hold
// of every format whatever the weights.

#include "kernels/quant/quantize_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/quant/element_formats.h"
#include "kernels/quant/round_formats.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using enum WeightElement;

struct Format {
  const char* name;
  WeightQuantization quantization;
};

void PrintTo(const Format& format, std::ostream* out) { *out << format.name; }

// Every way that a row of the table of export formats quantizes, with groups of small matrices.
const std::vector<Format>& formats() {
  static const std::vector<Format> list = {
      {"fp8_block", {kE4M3, ScaleType::kF32, 128, 128}},
      {"fp8_channel", {kE4M3, ScaleType::kBF16, 0, 1}},
      {"fp8_tensor", {kE4M3, ScaleType::kF32, 0, 0}},
      {"mxfp8", {kE4M3, ScaleType::kE8M0, 32, 1}},
      {"int8", {kInt8, ScaleType::kBF16, 0, 1}},
      {"int8_group", {kInt8, ScaleType::kF16, 32, 1}},
      {"int4", {kInt4, ScaleType::kBF16, 32, 1}},
      {"int4_asym", {kInt4, ScaleType::kBF16, 32, 1, true}},
      {"gptq_asym", {kInt4, ScaleType::kF16, 32, 1, true, 1}},
      {"mxfp4", {kE2M1, ScaleType::kE8M0, 32, 1}},
      {"nvfp4", {kE2M1, ScaleType::kE4M3, 16, 1}},
      {"nvfp4_divides", {kE2M1, ScaleType::kE4M3, 16, 1, false, 0, true}},
  };
  return list;
}

class WeightFormatTest : public testing::TestWithParam<Format> {
 protected:
  const WeightQuantization& quantization = GetParam().quantization;
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

// Weights of rows that differ by orders of magnitude, with some outliers and zeros.
std::vector<float> heavy_tailed(SeededRng& rng, int64_t out, int64_t in) {
  std::vector<float> weights = rng.normals(static_cast<size_t>(out * in), 0.02F);
  for (int64_t o = 0; o < out; ++o) {
    const float row = std::ldexp(1.0F, static_cast<int>(o % 7) - 3);
    for (int64_t i = 0; i < in; ++i) {
      float& weight = weights[static_cast<size_t>(o * in + i)];
      weight *= row;
      if (rng.integer(0, 99) == 0) weight *= 20.0F;
      if (rng.integer(0, 49) == 0) weight = 0.0F;
    }
  }
  return weights;
}

void expect_sane_scales(const QuantizedWeights& quantized) {
  for (const float scale : quantized.scales)
    EXPECT_TRUE(std::isfinite(scale) && scale > 0.0F) << scale;
  EXPECT_TRUE(std::isfinite(quantized.second) && quantized.second > 0.0F) << quantized.second;
}

// What rounding may cost a weight: half a step, and what the largest weights of a group lose
// because its scale was rounded down (2^-9 of them in bf16, 2^-4 in e4m3), or because FP4 and FP8
// saturate by rule. The step of a float is 2^-3 (e4m3) or half (e2m1) of its power of two.
double bound(const WeightQuantization& quantization, float weight, const GroupScale& scale) {
  const double size = std::fabs(static_cast<double>(weight));
  const double step = scale.step;
  if (quantization.is_integer()) {
    // Beyond the last code: 7.5 steps are rounded to 7, and all of the scale's own rounding.
    return step * (quantization.zero_points ? 1.0 : 0.5) + size * 0x1p-8 + step * 1e-6;
  }
  if (quantization.element == kE4M3) {
    const double half_step = std::max(size * 0x1p-4, step * 0x1p-10);
    return half_step * (1.0 + 1e-6) + size * 0x1p-8;
  }
  const double ratio = size / step;
  const double half_step = ratio < 2.0 ? 0.25 : ratio < 4.0 ? 0.5 : 1.0;
  // MXFP4: up to 7 counts as 6; NVFP4: e4m3 rounds the scale by up to 2^-4: 6.4 for 6.
  return std::max(half_step, ratio - 6.0) * step * (1.0 + 1e-5);
}

TEST_P(WeightFormatTest, KeepsEveryErrorWithinHalfAStep) {
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{3, 32}, {17, 160}, {130, 256}}) {
    const std::vector<float> weights = heavy_tailed(rng, out, in);
    const QuantizedWeights quantized = quantize_weights(quantization, weights, out, in);
    expect_sane_scales(quantized);
    const std::vector<float> values = dequantize(quantized);
    for (int64_t at = 0; at < out * in; ++at) {
      const float weight = weights[static_cast<size_t>(at)];
      const GroupScale scale = quantized.scale_of(at / in, at % in);
      const double error = std::fabs(static_cast<double>(values[static_cast<size_t>(at)]) - weight);
      ASSERT_LE(error, bound(quantization, weight, scale))
          << "[" << at / in << ", " << at % in << "] of [" << out << ", " << in << "]: " << weight
          << " became " << values[static_cast<size_t>(at)] << ", step " << scale.step;
    }
  }
}

// Whole matrices and solvers that go group by group choose alike.
TEST_P(WeightFormatTest, HasTheScaleThatItsGroupAloneGives) {
  std::vector<float> weights = heavy_tailed(rng, 4, 256);
  std::fill_n(weights.begin(), 128, 0.0F);
  std::fill_n(weights.begin() + 300, 30, 1e-9F);
  const QuantizedWeights quantized = quantize_weights(quantization, weights, 4, 256);
  if (quantization.rows != 1) return;  // blocks: what follows is about groups of one row
  const int64_t group = quantization.group > 0 ? quantization.group : 256;
  for (int64_t at = 0; at < 4 * 256; at += group) {
    const WeightRange range = weight_range(
        std::span(weights).subspan(static_cast<size_t>(at), static_cast<size_t>(group)));
    const GroupScale alone = group_scale(quantization, range, quantized.second);
    const GroupScale found = quantized.scale_of(at / 256, at % 256);
    ASSERT_EQ(found.stored, alone.stored) << at;
    ASSERT_EQ(found.step, alone.step) << at;
    ASSERT_EQ(found.zero, alone.zero) << at;
  }
}

// quantize(dequantize(q)) == q under q's own scales.
TEST_P(WeightFormatTest, IsIdempotent) {
  const std::vector<float> weights = heavy_tailed(rng, 130, 256);
  const QuantizedWeights once = quantize_weights(quantization, weights, 130, 256);
  const std::vector<float> values = dequantize(once);
  const std::vector<float> again = dequantize(quantize_like(once, values));
  EXPECT_EQ(again, values);
}

// Where the largest weight of a group is a code exactly, its scale is found again from the values,
// to the last place of its type: the values stay within two roundings.
// Not of integers: 7.5 of their steps are the largest weight, and 7 is the last code.
class FloatFormatTest : public WeightFormatTest {};

TEST_P(FloatFormatTest, FindsItsScalesAgain) {
  const std::vector<float> weights = heavy_tailed(rng, 130, 256);
  const std::vector<float> values = dequantize(quantize_weights(quantization, weights, 130, 256));
  const std::vector<float> again = dequantize(quantize_weights(quantization, values, 130, 256));
  for (size_t i = 0; i < values.size(); ++i)
    ASSERT_NEAR(again[i], values[i], std::fabs(values[i]) * 0x1p-21F) << i;
}

TEST_P(WeightFormatTest, GivesZerosBackAsZeros) {
  const std::vector<float> zeros(256 * 128, 0.0F);
  const QuantizedWeights quantized = quantize_weights(quantization, zeros, 128, 256);
  expect_sane_scales(quantized);
  EXPECT_EQ(dequantize(quantized), zeros);
}

// Groups of zeros among others, of one value, of one sign, of numbers that are hardly there.
TEST_P(WeightFormatTest, KeepsScalesSaneForOddGroups) {
  constexpr int64_t kIn = 128;
  const std::array<float, 9> odd = {0.0F,     1.0F,     -1.0F,     0.3F,     -2.5F,
                                    0x1p-30F, 0x1p-60F, 0x1p-100F, 0x1p-120F};
  std::vector<float> weights;
  for (const float value : odd)
    weights.insert(weights.end(), static_cast<size_t>(kIn), value);
  const QuantizedWeights quantized =
      quantize_weights(quantization, weights, static_cast<int64_t>(odd.size()), kIn);
  expect_sane_scales(quantized);
  const std::vector<float> values = dequantize(quantized);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_TRUE(std::isfinite(values[i])) << i;
    ASSERT_LE(std::fabs(values[i]), 2.0F * std::max(std::fabs(weights[i]), 0x1p-14F)) << i;
  }
}

TEST_P(WeightFormatTest, KeepsScalesSaneForSubnormalNumbers) {
  const std::vector<float> tiny(256, 1e-41F);
  const QuantizedWeights quantized = quantize_weights(quantization, tiny, 2, 128);
  expect_sane_scales(quantized);
  for (const float value : dequantize(quantized))
    ASSERT_LE(std::fabs(value), 0x1p-100F);
}

// Large weights are kept, or refused where the scale's type ends; never infinite.
TEST_P(WeightFormatTest, KeepsHugeWeightsOrRefusesThem) {
  std::vector<float> huge(256, 1e30F);
  huge[5] = -3e38F;
  const bool narrow =
      quantization.scale == ScaleType::kF16 || quantization.scale == ScaleType::kE8M0;
  if (narrow) {
    expect_error([&] { (void)quantize_weights(quantization, huge, 2, 128); },
                 ErrorCode::kUnsupported, {"scale"});
    return;
  }
  const QuantizedWeights quantized = quantize_weights(quantization, huge, 2, 128);
  expect_sane_scales(quantized);
  const std::vector<float> values = dequantize(quantized);
  EXPECT_TRUE(std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); }));
  EXPECT_NEAR(values[5] / -3e38F, 1.0F, 0.1F);
}

INSTANTIATE_TEST_SUITE_P(Formats, WeightFormatTest, testing::ValuesIn(formats()),
                         [](const auto& p) { return std::string(p.param.name); });

std::vector<Format> float_formats() {
  std::vector<Format> floats = formats();
  std::erase_if(floats, [](const Format& f) { return f.quantization.is_integer(); });
  return floats;
}

INSTANTIATE_TEST_SUITE_P(Formats, FloatFormatTest, testing::ValuesIn(float_formats()),
                         [](const auto& p) { return std::string(p.param.name); });

// ---- scales that several matrices share ------------------------------------------------------

TEST(SharedScale, IsThatOfTheLargestMatrix) {
  for (const WeightQuantization& quantization :
       {WeightQuantization{kE2M1, ScaleType::kE4M3, 16, 1},
        WeightQuantization{kE4M3, ScaleType::kF32, 0, 0}}) {
    SeededRng rng;
    const std::vector<float> gate = rng.normals(4 * 64);
    std::vector<float> up = rng.normals(4 * 64, 3.0F);
    const float amax = std::max(weight_range(gate).amax(), weight_range(up).amax());
    const QuantizedWeights a = quantize_weights(quantization, gate, 4, 64, amax);
    const QuantizedWeights b = quantize_weights(quantization, up, 4, 64, amax);
    EXPECT_EQ(a.second, b.second);
    if (!quantization.two_levels()) {
      EXPECT_EQ(a.scales, b.scales);
    }
    EXPECT_EQ(b.second, quantize_weights(quantization, up, 4, 64).second);
  }
}

// A second scale of zero would be an infinite one where it divides.
TEST(SharedScale, OfZerosIsThatOfOne) {
  WeightQuantization nvfp4{kE2M1, ScaleType::kE4M3, 16, 1};
  EXPECT_EQ(second_scale(nvfp4, 0.0F), 1.0F / 2688.0F);
  nvfp4.divides = true;
  EXPECT_EQ(second_scale(nvfp4, 0.0F), 2688.0F);
  EXPECT_EQ(second_scale(nvfp4, 4.0F), 672.0F);
}

// Zero points of GPTQ's first format are 1 to 16: a group without negative weights needs one.
TEST(ZeroPoint, IsAtLeastWhatTheFileCanHold) {
  const WeightQuantization gptq{kInt4, ScaleType::kF16, 32, 1, true, 1};
  std::vector<float> weights(32);
  for (size_t i = 0; i < weights.size(); ++i)
    weights[i] = static_cast<float>(i);
  const QuantizedWeights quantized = quantize_weights(gptq, weights, 1, 32);
  EXPECT_EQ(quantized.zeros[0], 1);
  EXPECT_EQ(quantized.codes[0], 1);
  EXPECT_EQ(quantized.codes[31], 15);
  EXPECT_NEAR(dequantize(quantized)[31], 31.0F, 31.0F * 0x1p-10F);
}

TEST(QuantizeWeights, RefusesSizesThatDoNotFit) {
  const std::vector<float> weights(64);
  expect_error([&] { (void)quantize_weights({}, weights, 3, 32); }, ErrorCode::kInvalidArgument,
               {"[3, 32]", "64"});
}

// ---- row passes --------------------------------------------------------------------------------

// Every code's value, and numbers around each middle between two of them, at several steps.
std::vector<float> revealing(WeightElement element) {
  std::vector<float> values;
  for (int code = 0; code < 256; ++code) {
    float value = static_cast<float>(code - 128);
    if (element == kE4M3) value = e4m3_to_f32(static_cast<uint8_t>(code));
    if (element == kE2M1) value = e2m1_to_f32(static_cast<uint8_t>(code & 15));
    if (std::isnan(value)) continue;
    values.push_back(value);
  }
  const std::vector<float> exact = values;
  for (size_t i = 0; i + 1 < exact.size(); ++i) {
    const float middle = (exact[i] + exact[i + 1]) / 2.0F;
    for (const float value : {middle, std::nextafter(middle, 1e9F), std::nextafter(middle, -1e9F)})
      values.push_back(value);
  }
  for (const float value : {-0.0F, 1e-45F, -1e-45F, 1e30F, -1e30F, 3.4e38F})
    values.push_back(value);
  return values;
}

TEST(WeightCodes, AreTheNearestWithTiesToEven) {
  for (const float value : revealing(kE4M3)) {
    EXPECT_EQ(e4m3_to_f32(weight_code(kE4M3, value, {})), round_to_e4m3(value)) << value;
  }
  for (const float value : revealing(kE2M1)) {
    EXPECT_EQ(e2m1_to_f32(weight_code(kE2M1, value, {})), round_to_e2m1(value)) << value;
  }
  const GroupScale middle{.zero = 128};
  EXPECT_EQ(weight_code(kInt8, 2.5F, middle), 130);
  EXPECT_EQ(weight_code(kInt8, 3.5F, middle), 132);
  EXPECT_EQ(weight_code(kInt8, -1e30F, middle), 0);
  EXPECT_EQ(weight_code(kInt4, 1e30F, {.zero = 8}), 15);
}

TEST(WeightRowOpsTest, Avx512GivesTheBitsOfTheReference) {
  if (!detected_isas().contains(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  for (const WeightElement element : {kE4M3, kE2M1, kInt8, kInt4}) {
    std::vector<float> weights = revealing(element);
    const std::vector<float> more = rng.normals(500, 30.0F);
    weights.insert(weights.end(), more.begin(), more.end());
    for (const int64_t n : {int64_t{1}, int64_t{15}, int64_t{16}, int64_t{17},
                            static_cast<int64_t>(weights.size())}) {
      for (const int64_t group : {int64_t{16}, int64_t{24}, n}) {
        const int64_t groups = (n + group - 1) / group;
        std::vector<float> steps;
        std::vector<uint8_t> zeros;
        for (int64_t g = 0; g < groups; ++g) {
          steps.push_back(g % 2 == 0 ? 1.0F : rng.uniform(0.1F, 3.0F));
          zeros.push_back(static_cast<uint8_t>(rng.integer(0, element == kInt4 ? 15 : 255)));
        }
        std::vector<uint8_t> expected(static_cast<size_t>(n));
        std::vector<uint8_t> found(static_cast<size_t>(n));
        CodeRow row{element, weights.data(), n, group, steps.data(), zeros.data(), expected.data()};
        scalar::kWeightRowOps.codes(row);
        row.codes = found.data();
        avx512::kWeightRowOps.codes(row);
        ASSERT_EQ(found, expected) << "n " << n << ", group " << group;

        std::vector<float> low(static_cast<size_t>(groups));
        std::vector<float> high = low;
        std::vector<float> low_found = low;
        std::vector<float> high_found = low;
        scalar::kWeightRowOps.ranges({weights.data(), n, group, low.data(), high.data()});
        avx512::kWeightRowOps.ranges(
            {weights.data(), n, group, low_found.data(), high_found.data()});
        ASSERT_EQ(low_found, low);
        ASSERT_EQ(high_found, high);
      }
    }
  }
}

TEST(WeightRowOpsTest, Avx512PacksNibblesLikeTheReference) {
  if (!detected_isas().contains(Isa::kAvx512)) GTEST_SKIP() << "needs AVX-512";
  SeededRng rng;
  for (const int64_t n : {1, 2, 63, 64, 65, 128, 201}) {
    std::vector<uint8_t> codes;
    for (int64_t i = 0; i < n; ++i)
      codes.push_back(static_cast<uint8_t>(rng.integer(0, 15)));
    std::vector<uint8_t> expected(static_cast<size_t>((n + 1) / 2));
    std::vector<uint8_t> found(expected.size());
    scalar::kWeightRowOps.pack_nibbles(codes.data(), n, expected.data());
    avx512::kWeightRowOps.pack_nibbles(codes.data(), n, found.data());
    ASSERT_EQ(found, expected) << n;
  }
}

}  // namespace
}  // namespace gantry::test
