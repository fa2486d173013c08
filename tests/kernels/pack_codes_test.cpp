// Values of codes and scales, and which scales a type can hold. Where they stand in a packed matrix
// is tested by coded_layout_test.

#include "kernels/grouped_gemm/pack_codes.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/coded_case.h"

namespace gantry::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(CodeValueTest, EveryCodeHasTheValueOfItsFormat) {
  for (const WeightElement element : every_element()) {
    for (unsigned code = 0; code < 256; ++code) {
      const float found = code_value(element, static_cast<uint8_t>(code));
      const double expected = value_of(element, code);
      if (std::isnan(expected)) {
        EXPECT_FALSE(std::isfinite(found)) << code;  // e5m2 has infinities
        continue;
      }
      EXPECT_EQ(static_cast<double>(found), expected) << code;
      EXPECT_EQ(std::signbit(found), std::signbit(expected)) << code;
    }
  }
}

TEST(CodeValueTest, FormatsReachWhatTheirStandardsSay) {
  EXPECT_EQ(code_value(WeightElement::kE4M3, 0x7e), 448.0F);
  EXPECT_EQ(code_value(WeightElement::kE4M3, 0x01), 0x1p-9F);
  EXPECT_EQ(code_value(WeightElement::kE4M3, 0x08), 0x1p-6F);
  EXPECT_EQ(code_value(WeightElement::kInt8, 0x80), -128.0F);
  EXPECT_EQ(code_value(WeightElement::kInt4, 0x8), -8.0F);
  const float fp4[16] = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                         -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};
  for (unsigned code = 0; code < 16; ++code)
    EXPECT_EQ(code_value(WeightElement::kE2M1, static_cast<uint8_t>(code)), fp4[code]);
}

TEST(LoadScaleTest, EveryE8M0AndE4M3CodeHasItsValue) {
  for (unsigned code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::byte>(code);
    const float e8m0 = load_scale(&byte, ScaleType::kE8M0, 0);
    const float e4m3 = load_scale(&byte, ScaleType::kE4M3, 0);
    if (code == 255) {
      EXPECT_TRUE(std::isnan(e8m0));
    } else {
      EXPECT_EQ(static_cast<double>(e8m0), std::ldexp(1.0, static_cast<int>(code) - 127)) << code;
    }
    const double expected = value_of(WeightElement::kE4M3, code);
    EXPECT_TRUE(static_cast<double>(e4m3) == expected || (std::isnan(e4m3) && std::isnan(expected)))
        << code;
  }
}

// A matrix of 40 rows and 3 groups whose scale (row, group) is `value`.
bool packs_with_scale(ScaleType type, float value, int64_t row, int64_t group) {
  SeededRng rng;
  CodedCase c = random_coded(
      rng, {.n = 40, .k = 70, .format = {WeightElement::kInt4, type, 32, false, false}});
  c.scales[static_cast<size_t>(row * 3 + group)] = value;
  return c.store();
}

struct ScaleEdges {
  ScaleType type;
  std::vector<float> held;
  std::vector<float> refused;
};

TEST(PackScaleTest, ScalesThatTheTypeHoldsAreTakenAndOthersAreToldOf) {
  const std::vector<ScaleEdges> edges = {
      {ScaleType::kF16, {65504.0F, 0x1p-24F, 0x1p-14F, 0.0F}, {65520.0F, 0x1p-25F, 0.1F, kNan}},
      {ScaleType::kBF16, {0x1.fep127F, 0x1p-126F, 0.0F}, {0x1.01p0F + 0x1p-9F, 0.1F, kNan}},
      {ScaleType::kE8M0,
       {0x1p127F, 0x1p-127F, 1.0F},
       {0.0F, -1.0F, 3.0F, 0x1p-128F, kInfinity, kNan}},
      {ScaleType::kE4M3,
       {448.0F, 0x1p-9F, 0x7p-9F, 0.0F},
       {480.0F, 0x1p-10F, 1.0625F, kInfinity, kNan}}};
  for (const ScaleEdges& edge : edges) {
    for (const float value : edge.held)
      EXPECT_TRUE(packs_with_scale(edge.type, value, 39, 2)) << value;
    for (const float value : edge.refused) {
      EXPECT_FALSE(packs_with_scale(edge.type, value, 0, 0)) << value;
      EXPECT_FALSE(packs_with_scale(edge.type, value, 17, 1)) << value;
      EXPECT_FALSE(packs_with_scale(edge.type, value, 39, 2)) << value;
    }
  }
}

TEST(PackScaleTest, EveryStoredScaleIsLoadedAgain) {
  for (const ScaleType type : {ScaleType::kE8M0, ScaleType::kE4M3}) {
    for (unsigned code = 0; code < 256; ++code) {
      const auto byte = static_cast<std::byte>(code);
      const float value = load_scale(&byte, type, 0);
      if (std::isnan(value)) continue;
      const PackedLayout layout{.dtype = DType::kF32,
                                .n = 1,
                                .k = 32,
                                .format = {WeightElement::kE2M1, type, 32, false, false}};
      CodedCase c{.layout = layout, .codes = std::vector<uint8_t>(32), .scales = {value}};
      ASSERT_TRUE(c.store()) << code;
      EXPECT_EQ(static_cast<unsigned>(c.packed.data()[0]), code);
    }
  }
}

}  // namespace
}  // namespace gantry::test
