#include "loader/input_scales.h"

#include <gtest/gtest.h>

#include <limits>

namespace gantry::test {
namespace {

/// Indices of the scales that have a problem; all of one projection.
std::vector<size_t> problems_of(const std::vector<float>& values) {
  std::vector<InputScale> scales;
  for (const float value : values)
    scales.push_back({Part::kW1, value});
  std::vector<size_t> found;
  for (const InputScaleProblem& problem : find_input_scale_problems(scales))
    found.push_back(problem.index);
  return found;
}

using Indices = std::vector<size_t>;

TEST(InputScalesTest, CalibratedScalesHaveNoProblem) {
  EXPECT_EQ(problems_of({0.02F, 0.013F, 0.3F, 0.0001F}), Indices());
  EXPECT_EQ(problems_of({}), Indices());
}

TEST(InputScalesTest, ZeroNanInfinityAndNegativeNumbersAreNone) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(problems_of({0.02F, 0.0F, 0.03F}), Indices({1}));
  EXPECT_EQ(problems_of({std::numeric_limits<float>::quiet_NaN(), 0.02F}), Indices({0}));
  EXPECT_EQ(problems_of({0.02F, kInfinity, -kInfinity}), Indices({1, 2}));
  EXPECT_EQ(problems_of({0.02F, 0.02F, -0.02F, -0.0F}), Indices({2, 3}));
}

TEST(InputScalesTest, OneEverywhereIsWhatNobodyCalibrated) {
  const std::vector<InputScale> scales(12, {Part::kW2, 1.0F});
  const auto problems = find_input_scale_problems(scales);
  ASSERT_EQ(problems.size(), 1U);  // said once
  EXPECT_NE(problems[0].message.find("all 12"), std::string::npos) << problems[0].message;
  EXPECT_EQ(problems_of({1.0F, 1.0F, 1.0F, 0.9F}), Indices());
}

TEST(InputScalesTest, OneIsSuspiciousFarFromTheOtherExperts) {
  EXPECT_EQ(problems_of({0.02F, 1.0F, 0.03F}), Indices({1}));
  EXPECT_EQ(problems_of({300.0F, 280.0F, 1.0F}), Indices({2}));  // NVFP4's divisors are large
  EXPECT_EQ(problems_of({0.5F, 1.0F, 2.0F}), Indices());
  EXPECT_EQ(problems_of({1.0F / 16, 1.0F}), Indices());
  // Down projections have other inputs: theirs say nothing about gate and up.
  const std::vector<InputScale> mixed = {{Part::kW1, 1.0F}, {Part::kW1, 1.5F}, {Part::kW2, 0.01F}};
  EXPECT_TRUE(find_input_scale_problems(mixed).empty());
}

TEST(InputScalesTest, ATensorOfInputsChangesNoWeight) {
  EXPECT_TRUE(is_input_scale("input_scale"));
  EXPECT_TRUE(is_input_scale("input_global_scale"));
  EXPECT_TRUE(is_input_scale("input_zero_point"));
  EXPECT_FALSE(is_input_scale("weight_scale"));
  EXPECT_FALSE(is_input_scale("pre_quant_scale"));
}

}  // namespace
}  // namespace gantry::test
