#include "kernels/base/float_convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

// A 16-bit float format, decoded by its definition and not by its bits in f32.
struct HalfFormat {
  DType dtype;
  int mantissa_bits;
  int bias;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};

const HalfFormat kF16 = {DType::kF16, 10, 15, f16_to_f32, f32_to_f16};
const HalfFormat kBf16 = {DType::kBF16, 7, 127, bf16_to_f32, f32_to_bf16};

// (-1)^s * 1.m * 2^(e - bias), or 0.m * 2^(1 - bias); the highest exponent is infinity or NaN.
double decode(const HalfFormat& format, uint32_t bits) {
  const int exponent_bits = 15 - format.mantissa_bits;
  const int mantissa_scale = 1 << format.mantissa_bits;
  const int exponent = static_cast<int>(bits >> format.mantissa_bits) % (1 << exponent_bits);
  const int mantissa = static_cast<int>(bits) % mantissa_scale;
  const double sign = bits >= 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  const int significand = exponent == 0 ? mantissa : mantissa + mantissa_scale;
  return sign * std::ldexp(significand, std::max(exponent, 1) - format.bias - format.mantissa_bits);
}

// Rounds by search: the two neighbours among all finite magnitudes, the nearer one, the even one of
// two equally near. One step past the largest stands where the next binade would begin.
uint16_t round_by_search(const std::vector<double>& magnitudes, float value) {
  const uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const double magnitude = std::fabs(static_cast<double>(value));
  const auto above = std::lower_bound(magnitudes.begin(), magnitudes.end(), magnitude);
  if (above == magnitudes.end()) return static_cast<uint16_t>(sign | (magnitudes.size() - 1));
  auto code = static_cast<uint32_t>(above - magnitudes.begin());
  if (code > 0 && *above != magnitude) {
    const double up = *above - magnitude;
    const double down = magnitude - magnitudes[code - 1];
    if (down < up || (down == up && code % 2 == 1)) --code;
  }
  return static_cast<uint16_t>(sign | code);
}

std::vector<double> finite_magnitudes(const HalfFormat& format) {
  std::vector<double> magnitudes;
  for (uint32_t bits = 0; std::isfinite(decode(format, bits)); ++bits) {
    magnitudes.push_back(decode(format, bits));
  }
  const size_t last = magnitudes.size() - 1;
  magnitudes.push_back(2 * magnitudes[last] - magnitudes[last - 1]);  // rounds to infinity
  return magnitudes;
}

class FloatConvertTest : public testing::TestWithParam<const HalfFormat*> {
 protected:
  const HalfFormat& format = *GetParam();
};

TEST_P(FloatConvertTest, WidensEveryPatternExactly) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float found = format.widen(static_cast<uint16_t>(bits));
    const double expected = decode(format, bits);
    ASSERT_EQ(std::isnan(found), std::isnan(expected)) << std::hex << bits;
    ASSERT_TRUE(std::isnan(expected) || static_cast<double>(found) == expected)
        << std::hex << bits << ": " << found;
    ASSERT_EQ(std::signbit(found), bits >= 0x8000) << std::hex << bits;
  }
}

TEST_P(FloatConvertTest, NarrowsEveryWidenedPatternBackToItself) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const uint16_t back = format.narrow(format.widen(half));
    if (std::isnan(decode(format, bits))) {
      ASSERT_TRUE(std::isnan(decode(format, back))) << std::hex << bits;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

TEST_P(FloatConvertTest, RoundsMidpointsToEvenAndTheirNeighboursToTheNearest) {
  const std::vector<double> magnitudes = finite_magnitudes(format);
  for (size_t i = 0; i + 1 < magnitudes.size(); ++i) {
    const auto middle = static_cast<float>((magnitudes[i] + magnitudes[i + 1]) / 2);
    for (const float value :
         {middle, std::nextafterf(middle, 0.0F), std::nextafterf(middle, 1e38F), -middle}) {
      ASSERT_EQ(format.narrow(value), round_by_search(magnitudes, value)) << std::hexfloat << value;
    }
  }
}

TEST_P(FloatConvertTest, RoundsRandomPatternsToTheNearest) {
  const std::vector<double> magnitudes = finite_magnitudes(format);
  SeededRng rng;
  for (int i = 0; i < 500'000; ++i) {
    const auto bits = static_cast<uint32_t>(rng.engine()());
    const auto value = std::bit_cast<float>(bits);
    if (std::isnan(value)) continue;
    ASSERT_EQ(format.narrow(value), round_by_search(magnitudes, value))
        << std::hexfloat << value << ", seed " << rng.seed();
  }
}

TEST_P(FloatConvertTest, KeepsNanWhoseMantissaWouldBeCutOff) {
  const auto low_nan = std::bit_cast<float>(0x7f800001u);
  EXPECT_TRUE(std::isnan(format.widen(format.narrow(low_nan))));
  EXPECT_TRUE(std::isnan(format.widen(format.narrow(std::bit_cast<float>(0xffffffffu)))));
}

TEST_P(FloatConvertTest, ArraysGoThroughTheSameConversions) {
  const std::vector<float> values = {1.0F, -2.7F, 1e-7F, 70000.0F, INFINITY};
  std::vector<uint16_t> halves(values.size());
  std::vector<float> back(values.size());
  convert_from_f32(values.data(), 5, format.dtype, halves.data());
  convert_to_f32(halves.data(), format.dtype, 5, back.data());
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(halves[i], format.narrow(values[i]));
    EXPECT_EQ(back[i], format.widen(halves[i]));
    EXPECT_EQ(load_as_f32(halves.data(), format.dtype, static_cast<int64_t>(i)), back[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, FloatConvertTest, testing::Values(&kF16, &kBf16),
                         [](const auto& tested) {
                           return std::string(to_string(tested.param->dtype));
                         });

TEST(FloatConvertF32Test, CopiesBitsIncludingNan) {
  const std::vector<float> values = {0.1F, -0.0F, std::bit_cast<float>(0x7fa00001u)};
  std::vector<float> copy(3);
  convert_to_f32(values.data(), DType::kF32, 3, copy.data());
  EXPECT_EQ(std::memcmp(copy.data(), values.data(), 12), 0);
  std::vector<float> again(3);
  convert_from_f32(copy.data(), 3, DType::kF32, again.data());
  EXPECT_EQ(std::memcmp(again.data(), values.data(), 12), 0);
  EXPECT_EQ(load_as_f32(values.data(), DType::kF32, 0), 0.1F);
}

TEST(FloatConvertF32Test, ReadsElementsAtOddAddresses) {
  // Tensors of a checkpoint start at any byte.
  std::vector<unsigned char> bytes(9);
  const float value = 3.25F;
  std::memcpy(bytes.data() + 5, &value, 4);
  EXPECT_EQ(load_as_f32(bytes.data() + 1, DType::kF32, 1), value);
}

}  // namespace
}  // namespace gantry::test
