#include "kernels/grouped_gemm/grouped_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/grouped_gemm/grouped_gemm_kernels.h"
#include "tests/kernels/grouped_gemm_case.h"

namespace gantry {

void PrintTo(const GroupedGemmKernel& kernel, std::ostream* out) { *out << kernel.name; }

namespace test {
namespace {

/// Runs every kernel in the table; a kernel this CPU cannot run is reported as skipped, not passed.
class GroupedGemmKernelTest : public testing::TestWithParam<GroupedGemmKernel> {
 protected:
  void SetUp() override {
    if (!detected_isas().contains(kernel.isa)) GTEST_SKIP() << "needs " << to_string(kernel.isa);
    isas.insert(kernel.isa);
    ASSERT_EQ(select_grouped_gemm(kernel.layout, kernel.dtype, isas).name, kernel.name);
  }

  void expect_matches_reference(const GemmShape& shape) {
    const GemmCase c = random_case(rng, kernel.dtype, shape);
    EXPECT_TRUE(all_close(run(c, isas), reference(c), tolerance(c)))
        << "n " << shape.n << ", k " << shape.k << ", seed " << rng.seed();
  }

  const GroupedGemmKernel& kernel = GetParam();
  IsaSet isas;  // scalar and the kernel's own
  SeededRng rng;
};

TEST_P(GroupedGemmKernelTest, MatchesTheReferenceAroundTheTileEdgeOfRows) {
  const auto tile = static_cast<int>(kernel.tile_rows);
  for (const int rows : {1, tile - 1, tile, tile + 1, 3 * tile - 1, 5 * tile}) {
    expect_matches_reference({.rows_per_expert = {rows, 0, rows}, .n = 48, .k = 64});
  }
}

TEST_P(GroupedGemmKernelTest, MatchesTheReferenceAroundTheTileEdgeOfColumns) {
  for (const int n : {1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 129}) {
    expect_matches_reference({.rows_per_expert = {5, 2}, .n = n, .k = 32});
  }
}

TEST_P(GroupedGemmKernelTest, MatchesTheReferenceForEveryRemainderOfTheVector) {
  for (int k = 1; k <= 33; ++k) {
    expect_matches_reference({.rows_per_expert = {5}, .n = 6, .k = k, .has_bias = k % 2 == 0});
  }
}

TEST_P(GroupedGemmKernelTest, MatchesTheReferenceForASingleProduct) {
  expect_matches_reference({.rows_per_expert = {1}, .n = 1, .k = 1});
}

TEST_P(GroupedGemmKernelTest, MatchesTheReferenceWithMoreRowsThanATaskHolds) {
  expect_matches_reference({.rows_per_expert = {256, 257, 513}, .n = 6, .k = 20});
}

TEST_P(GroupedGemmKernelTest, MatchesTheReferenceForALongDot) {
  expect_matches_reference({.rows_per_expert = {3, 6}, .n = 10, .k = 2051, .has_bias = true});
}

TEST_P(GroupedGemmKernelTest, AddsTheBiasOfTheRowsExpert) {
  expect_matches_reference({.rows_per_expert = {3, 0, 1, 7}, .n = 37, .k = 24, .has_bias = true});
}

TEST_P(GroupedGemmKernelTest, WithoutInputsTheBiasIsTheResult) {
  expect_matches_reference({.rows_per_expert = {2, 3}, .n = 5, .k = 0, .has_bias = true});
}

TEST_P(GroupedGemmKernelTest, AllRowsMayGoToOneExpert) {
  expect_matches_reference({.rows_per_expert = {0, 0, 41, 0}, .n = 33, .k = 40});
}

TEST_P(GroupedGemmKernelTest, NoRowsAtAllAreFine) {
  const GemmCase c = random_case(rng, kernel.dtype, {.rows_per_expert = {0, 0}, .n = 8, .k = 8});
  EXPECT_TRUE(run(c, isas).empty());
}

TEST_P(GroupedGemmKernelTest, DoesNotReadAnExpertWithoutRows) {
  GemmCase c = random_case(rng, kernel.dtype,
                           {.rows_per_expert = {4, 0, 4, 0}, .n = 32, .k = 31, .has_bias = true});
  const std::vector<double> expected = reference(c);
  poison_expert(c, 1);
  poison_expert(c, 3);
  EXPECT_TRUE(all_close(run(c, isas), expected, dot_tolerance(31, 6.0, 6.0, 6.0)));
}

TEST_P(GroupedGemmKernelTest, NanOfOneRowStaysInItsRow) {
  GemmCase c = random_case(rng, kernel.dtype, {.rows_per_expert = {9}, .n = 12, .k = 19});
  const std::vector<float> clean = run(c, isas);
  c.x[4 * 19 + 18] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> found = run(c, isas);
  for (size_t i = 0; i < found.size(); ++i) {
    if (i / 12 == 4) {
      EXPECT_TRUE(std::isnan(found[i]));
    } else {
      EXPECT_EQ(found[i], clean[i]);
    }
  }
}

TEST_P(GroupedGemmKernelTest, NanAndInfinityOfOneWeightReachItsColumn) {
  GemmCase c = random_case(rng, kernel.dtype, {.rows_per_expert = {5}, .n = 8, .k = 17});
  c.w[3 * 17 + 16] = std::numeric_limits<float>::quiet_NaN();
  c.w[6 * 17 + 2] = std::numeric_limits<float>::infinity();
  c.store_weights();
  const std::vector<float> found = run(c, isas);
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(std::isnan(found[i]), i % 8 == 3);
    EXPECT_EQ(std::isinf(found[i]), i % 8 == 6);
  }
}

TEST_P(GroupedGemmKernelTest, KeepsSubnormalWeights) {
  // 1e-40 is subnormal in f32 and bf16, 1e-6 in f16: flushing any of them would lose the result.
  const float tiny = kernel.dtype == DType::kF16 ? 1e-6F : 1e-40F;
  expect_matches_reference(
      {.rows_per_expert = {5}, .n = 9, .k = 21, .x_deviation = 1e10F, .w_deviation = tiny});
}

TEST_P(GroupedGemmKernelTest, KeepsSubnormalInputsAndResults) {
  expect_matches_reference(
      {.rows_per_expert = {5}, .n = 9, .k = 21, .x_deviation = 1e-41F, .w_deviation = 1.0F});
}

TEST_P(GroupedGemmKernelTest, TakesTheLargestMagnitudesOfItsType) {
  const float largest = kernel.dtype == DType::kF16    ? 65504.0F
                        : kernel.dtype == DType::kBF16 ? 0x1.fep127F
                                                       : std::numeric_limits<float>::max();
  GemmCase c = random_case(rng, kernel.dtype,
                           {.rows_per_expert = {5}, .n = 6, .k = 20, .x_deviation = 1e-3F});
  for (size_t i = 0; i < c.w.size(); ++i)
    c.w[i] = std::copysign(largest, c.w[i]);
  c.store_weights();
  EXPECT_EQ(std::fabs(c.w[0]), largest);
  EXPECT_TRUE(all_close(run(c, isas), reference(c), tolerance(c)));
}

TEST_P(GroupedGemmKernelTest, OverflowsToInfinityAsF32Does) {
  GemmCase c = random_case(rng, kernel.dtype, {.rows_per_expert = {5}, .n = 4, .k = 16});
  std::fill(c.x.begin(), c.x.end(), 1e38F);
  std::fill(c.w.begin(), c.w.end(), -2.0F);
  c.store_weights();
  for (const float y : run(c, isas))
    EXPECT_EQ(y, -std::numeric_limits<float>::infinity());
}

TEST_P(GroupedGemmKernelTest, ARowHasTheSameBitsAloneAndInABatch) {
  const GemmShape shape = {.rows_per_expert = {11}, .n = 23, .k = 45, .has_bias = true};
  const GemmCase batch = random_case(rng, kernel.dtype, shape);
  const std::vector<float> together = run(batch, isas);
  for (size_t row = 0; row < 11; ++row) {
    GemmCase alone = batch;
    alone.offsets = {0, 1};
    alone.x.assign(batch.x.begin() + static_cast<ptrdiff_t>(row * 45),
                   batch.x.begin() + static_cast<ptrdiff_t>(row * 45 + 45));
    const std::vector<float> found = run(alone, isas);
    EXPECT_TRUE(
        std::equal(found.begin(), found.end(), together.begin() + static_cast<ptrdiff_t>(row * 23)))
        << "row " << row;
  }
}

TEST_P(GroupedGemmKernelTest, TheNumberOfThreadsDoesNotChangeABit) {
  const GemmCase c =
      random_case(rng, kernel.dtype, {.rows_per_expert = {7, 0, 300}, .n = 77, .k = 45});
  const std::vector<float> one = run(c, isas, {.count = 1, .executor = {}});
  for (const int count : {2, 3, 16}) {
    EXPECT_EQ(run(c, isas, {.count = count, .executor = {}}), one) << count << " threads";
  }
}

TEST_P(GroupedGemmKernelTest, ReadsWeightsAtUnalignedAddressesAndPaddedStrides) {
  const GemmCase c = random_case(rng, kernel.dtype,
                                 {.rows_per_expert = {3, 5}, .n = 7, .k = 18, .has_bias = true});
  const auto element = static_cast<size_t>(size_of(c.dtype));
  const size_t matrix = 7 * 18 * element;
  std::vector<std::byte> padded(element + 2 * (matrix + 3 * element));
  std::vector<float> bias(2 * 9);
  for (size_t slot = 0; slot < 2; ++slot) {
    std::memcpy(padded.data() + element + slot * (matrix + 3 * element),
                c.w_bytes.data() + slot * matrix, matrix);
    std::copy_n(c.bias.begin() + static_cast<ptrdiff_t>(slot * 7), 7,
                bias.begin() + static_cast<ptrdiff_t>(slot * 9));
  }
  ExpertWeights weights = c.weights();
  weights.data = padded.data() + element;
  weights.slot_stride_bytes = static_cast<int64_t>(matrix + 3 * element);
  weights.bias = bias.data();
  weights.bias_stride_bytes = 9 * 4;
  std::vector<float> y(8 * 7);
  grouped_gemm(c.x, weights, c.offsets, y, isas, {});
  EXPECT_EQ(y, run(c, isas));
}

INSTANTIATE_TEST_SUITE_P(AllKernels, GroupedGemmKernelTest,
                         testing::ValuesIn(grouped_gemm_kernels().begin(),
                                           grouped_gemm_kernels().end()),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace test
}  // namespace gantry
