// Quantization of activations against PyTorch's (tests/golden/README.md), against the definition of
// the number formats for every code, and in parts against whole.

#include "kernels/quant/quantize_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/quant/element_formats.h"
#include "kernels/quant/round_formats.h"
#include "loader/safetensors.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// ---- rounding: neighbours, and the middle between them ----------------------------------------

float next_up(float value) { return std::nextafter(value, kInfinity); }
float next_down(float value) { return std::nextafter(value, -kInfinity); }

// Codes 0 to `last` in ascending order of value.
void expect_rounds_to_nearest(float (*round)(float) noexcept, float (*decode)(uint8_t) noexcept,
                              uint8_t last) {
  for (int code = 0; code <= last; ++code) {
    const float value = decode(static_cast<uint8_t>(code));
    EXPECT_EQ(round(value), value) << code;
    EXPECT_EQ(round(-value), -value) << code;
    if (code == last) break;
    const float above = decode(static_cast<uint8_t>(code + 1));
    const float middle = 0.5F * (value + above);  // exact: few mantissa bits
    const float even = code % 2 == 0 ? value : above;
    EXPECT_EQ(round(middle), even) << code;
    EXPECT_EQ(round(-middle), -even) << code;
    EXPECT_EQ(round(next_down(middle)), value) << code;
    EXPECT_EQ(round(next_up(middle)), above) << code;
    EXPECT_EQ(round(next_up(-middle)), -value) << code;
    EXPECT_EQ(round(next_down(-middle)), -above) << code;
  }
}

TEST(RoundFormatsTest, RoundsToTheNearestOfAllE4m3Values) {
  expect_rounds_to_nearest(round_to_e4m3, e4m3_to_f32, 0x7e);
}

TEST(RoundFormatsTest, RoundsToTheNearestOfAllE2m1Values) {
  expect_rounds_to_nearest(round_to_e2m1, e2m1_to_f32, 7);
}

TEST(RoundFormatsTest, RoundsToTheNearestOfAllIntegers) {
  for (int i = -128; i <= 127; ++i) {
    const auto value = static_cast<float>(i);
    EXPECT_EQ(round_to_int8(value), value);
    EXPECT_EQ(round_to_int8(value + 0.499F), value);
    EXPECT_EQ(round_to_int8(value + 0.5F), i == 127 || i % 2 == 0 ? value : value + 1.0F) << i;
    EXPECT_EQ(round_to_int8(value + 0.501F), i == 127 ? 127.0F : value + 1.0F) << i;
  }
}

TEST(RoundFormatsTest, SaturatesAndKeepsNan) {
  for (const float sign : {1.0F, -1.0F}) {
    for (const float large : {449.0F, 464.0F, 1e30F, kInfinity}) {
      EXPECT_EQ(round_to_e4m3(sign * large), sign * 448.0F);
      EXPECT_EQ(round_to_e2m1(sign * large), sign * 6.0F);
    }
    EXPECT_EQ(round_to_int8(sign * kInfinity), sign > 0 ? 127.0F : -128.0F);
    // With every payload: rounding works on the bits.
    const float odd = std::bit_cast<float>(0x7fffffffu);
    for (const float nan : {sign * kNan, sign * odd}) {
      EXPECT_TRUE(std::isnan(round_to_e4m3(nan)));
      EXPECT_TRUE(std::isnan(round_to_e2m1(nan)));
      EXPECT_TRUE(std::isnan(round_to_int8(nan)));
    }
  }
}

// ---- rows -------------------------------------------------------------------------------------

struct Case {
  const char* name;  // of the tensor in the golden file
  RowFormat format;
  float static_scale = 0.0F;
};

const std::vector<Case>& cases() {
  using Kind = RowQuantization;
  static const std::vector<Case> all = {{"fp8_static", {Kind::kFp8Static}, 0.0113525390625F},
                                        {"fp8_token", {Kind::kFp8Token}},
                                        {"fp8_group", {Kind::kFp8Group, 128}},
                                        {"fp8_group_48", {Kind::kFp8Group, 48}},
                                        {"fp8_group_pow2", {Kind::kFp8Group, 128, true}},
                                        {"int8_static", {Kind::kInt8Static}, 0.03857421875F},
                                        {"int8_token", {Kind::kInt8Token}},
                                        {"mxfp8", {Kind::kMxFp8, 32}},
                                        {"mxfp4", {Kind::kMxFp4, 32}},
                                        {"nvfp4_static", {Kind::kNvFp4Static, 16}, 544.25F},
                                        {"nvfp4_token", {Kind::kNvFp4Token, 16}}};
  return all;
}

class QuantizeRowsTest : public testing::TestWithParam<Case> {
 protected:
  std::vector<float> quantized(std::vector<float> row) const {
    quantize_row(GetParam().format, {row, 0}, {}, GetParam().static_scale);
    return row;
  }
};

std::vector<float> read_floats(const SafetensorsFile& file, const std::string& name) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(info->num_elements()));
  file.read(info->begin, values.data(), info->num_bytes());
  return values;
}

TEST_P(QuantizeRowsTest, GivesTheBitsOfPyTorch) {
  const SafetensorsFile file(golden_root() / "activations" / "rows.safetensors");
  const std::vector<float> x = read_floats(file, "x");
  const std::vector<float> expected = read_floats(file, GetParam().name);
  constexpr size_t kColumns = 256;
  ASSERT_EQ(x.size() % kColumns, 0U);
  ASSERT_GT(x.size(), 0U);
  ASSERT_EQ(x.size(), expected.size());
  for (size_t begin = 0; begin < x.size(); begin += kColumns) {
    const auto y = quantized({x.begin() + static_cast<ptrdiff_t>(begin),
                              x.begin() + static_cast<ptrdiff_t>(begin + kColumns)});
    for (size_t i = 0; i < kColumns; ++i) {
      ASSERT_EQ(y[i], expected[begin + i])
          << "row " << begin / kColumns << ", column " << i << ": x = " << x[begin + i];
    }
  }
}

TEST_P(QuantizeRowsTest, KeepsZeros) {
  const std::vector<float> zeros(96, 0.0F);
  EXPECT_EQ(quantized(zeros), zeros);
}

// The error of normal values: not none, and not more than three bits of mantissa allow.
TEST_P(QuantizeRowsTest, IsWithinTheNoiseOfItsFormat) {
  SeededRng rng;
  const std::vector<float> x = rng.normals(512);
  const std::vector<float> y = quantized(x);
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (y[i] - x[i]) * (y[i] - x[i]);
    norm += x[i] * x[i];
  }

  EXPECT_LT(std::sqrt(difference / norm), 0.15);
  EXPECT_GT(difference, 0.0);
}

// One value of the row is NaN or infinite: it must not turn into a number.
TEST_P(QuantizeRowsTest, ShowsNanAndInfinity) {
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    std::vector<float> x(256, 1.0F);
    x[40] = bad;
    const std::vector<float> y = quantized(x);
    const bool saturates = !GetParam().format.needs_amax() && std::isinf(bad);
    if (saturates) {
      EXPECT_TRUE(std::isfinite(y[40]));
      EXPECT_EQ(y[41], quantized(std::vector<float>(256, 1.0F))[41]);
    } else {
      EXPECT_TRUE(std::isnan(y[40])) << bad;
    }
  }
}

// What tensor parallel ranks do: cut anywhere, with the magnitudes of all parts.
TEST_P(QuantizeRowsTest, PartsWithSharedMagnitudesGiveTheWholeRow) {
  SeededRng rng;
  const RowFormat& format = GetParam().format;
  for (const size_t cut : {1U, 43U, 64U, 128U, 255U}) {
    const std::vector<float> x = rng.normals(256);
    std::vector<float> y = x;
    const RowPart left{std::span(y).first(cut), 0};
    const RowPart right{std::span(y).subspan(cut), static_cast<int64_t>(cut)};
    std::vector<float> amax(static_cast<size_t>(format.num_groups(256)), 0.0F);
    for (const RowPart& part : {right, left})
      raise_group_amax(format, part, amax);
    for (const RowPart& part : {left, right})
      quantize_row(format, part, amax, GetParam().static_scale);
    EXPECT_EQ(y, quantized(x)) << "cut at " << cut;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeRowsTest, testing::ValuesIn(cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(QuantizeRowTest, KeepsRowsWithoutAFormat) {
  std::vector<float> x = {0.1F, kNan, -kInfinity};
  quantize_row({}, {x, 0}, {}, 0.0F);
  EXPECT_EQ(x[0], 0.1F);
  EXPECT_TRUE(std::isnan(x[1]));
  EXPECT_EQ(x[2], -kInfinity);
}

TEST(QuantizeRowTest, MagnitudesKeepTheLargestAndNan) {
  const RowFormat format{RowQuantization::kMxFp4, 32};
  std::vector<float> amax = {5.0F, 0.0F, 0.0F};
  std::vector<float> x(70, -1.0F);
  x[33] = -3.0F;
  x[69] = kNan;
  raise_group_amax(format, {x, 0}, amax);
  EXPECT_EQ(amax[0], 5.0F);
  EXPECT_EQ(amax[1], 3.0F);
  EXPECT_TRUE(std::isnan(amax[2]));
}

}  // namespace
}  // namespace gantry::test
