#include "kernels/grouped_gemm/panel_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "tests/kernels/panel_case.h"

namespace gantry {

void PrintTo(const PanelGemmKernel& kernel, std::ostream* out) { *out << kernel.name; }

namespace test {
namespace {

using Floats = std::vector<float>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Runs every kernel in the table; a kernel this CPU cannot run is reported as skipped, not passed.
class PanelGemmKernelTest : public testing::TestWithParam<PanelGemmKernel> {
 protected:
  void SetUp() override {
    if (!can_run(kernel.isa)) GTEST_SKIP() << "needs " << to_string(kernel.isa);
  }

  PanelCase random_case(const PanelShape& shape) { return random_panel(rng, kernel, shape); }

  void expect_matches_reference(const PanelShape& shape) {
    const PanelCase c = random_case(shape);
    EXPECT_TRUE(all_close(c.run(), c.reference(), c.tolerance()))
        << shape.num_rows << " rows, k " << shape.k;
  }

  /// Kernels of bf16 rows are those of the dot instructions, which take denormals as zero.
  [[nodiscard]] bool flushes_denormals() const { return kernel.rows == ActivationDType::kBF16; }

  const PanelGemmKernel& kernel = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(PanelGemmKernelTest, MatchesTheReferenceForEveryNumberOfRows) {
  for (int64_t rows = 1; rows <= kMaxPanelRows; ++rows)
    expect_matches_reference({.num_rows = rows, .k = 96});
}

TEST_P(PanelGemmKernelTest, MatchesTheReferenceForEveryDepth) {
  for (int64_t k = 32; k <= 2080; k += 32)
    expect_matches_reference({.num_rows = 1 + k / 32 % 7, .k = k});
}

TEST_P(PanelGemmKernelTest, MatchesTheReferenceForALongDot) {
  expect_matches_reference({.num_rows = 18, .k = 14336});
}

TEST_P(PanelGemmKernelTest, IsWithinTheErrorBoundOfTheScalarKernel) {
  // The runtime's promise: || C - C_scalar || <= 1e-4 || C_scalar ||, the inputs being the same.
  const KernelRequest request{
      .weights = kernel.weights, .activations = ActivationDType::kF32, .isas = IsaSet{}};
  for (const int64_t rows : {1, 7, 48}) {
    const PanelCase tested = random_case({.num_rows = rows, .k = 2048});
    PanelCase scalar{.kernel = select_panel_gemm(request),
                     .num_rows = rows,
                     .k = tested.k,
                     .x = tested.x,
                     .w = tested.w,
                     .rows = {},
                     .panel = {}};
    scalar.store();
    const Floats found = tested.run();
    const Floats expected = scalar.run();
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < found.size(); ++i) {
      error += std::pow(static_cast<double>(found[i]) - expected[i], 2);
      norm += std::pow(static_cast<double>(expected[i]), 2);
    }
    EXPECT_LE(std::sqrt(error), 1e-4 * std::sqrt(norm)) << rows << " rows, seed " << rng.seed();
  }
}

TEST_P(PanelGemmKernelTest, FetchingTheNextPanelDoesNotChangeABit) {
  for (const int64_t rows : {1, 8, 12, 13, 16, 17, 33, 48}) {
    const PanelCase c = random_case({.num_rows = rows, .k = 160});
    EXPECT_EQ(c.run(0, rows, c.panel.data()), c.run()) << rows << " rows, seed " << rng.seed();
  }
}

TEST_P(PanelGemmKernelTest, ARowHasTheSameBitsAloneAndInEveryBatch) {
  ASSERT_TRUE(kernel.batch_invariant) << "say here which rows a kernel may treat differently";
  const PanelCase c = random_case({.num_rows = kMaxPanelRows, .k = 128});
  Floats alone;
  for (int64_t r = 0; r < kMaxPanelRows; ++r) {
    const Floats row = c.run(r, 1);
    alone.insert(alone.end(), row.begin(), row.end());
  }
  for (int64_t rows = 1; rows <= kMaxPanelRows; ++rows) {
    const int64_t first = rng.integer(0, kMaxPanelRows - rows);
    const Floats together = c.run(first, rows);
    EXPECT_TRUE(std::equal(together.begin(), together.end(),
                           alone.begin() + static_cast<ptrdiff_t>(first * kPanelWidth)))
        << rows << " rows from " << first;
  }
}

TEST_P(PanelGemmKernelTest, WritesItsRowsOfCAndNothingElse) {
  const PanelCase c = random_case({.num_rows = kMaxPanelRows, .k = 32});
  const Floats all = c.run();
  for (int64_t rows = 1; rows < kMaxPanelRows; ++rows) {
    Buffer<float> out((kMaxPanelRows + 1) * kPanelWidth);
    std::fill(out.span().begin(), out.span().end(), -77.0F);
    kernel.run({c.rows.data(), c.stride(), c.panel.data(), c.k, rows, out.data(), nullptr});
    const auto written = static_cast<size_t>(rows * kPanelWidth);
    EXPECT_TRUE(std::equal(all.begin(), all.begin() + static_cast<ptrdiff_t>(written), out.data()));
    for (size_t i = written; i < out.size(); ++i)
      ASSERT_EQ(out[i], -77.0F) << rows << " rows, position " << i;
  }
}

TEST_P(PanelGemmKernelTest, NanOfOneRowStaysInItsRow) {
  for (const int64_t rows : {9, 17, 31}) {
    PanelCase c = random_case({.num_rows = rows, .k = 64});
    const Floats clean = c.run();
    c.x[4 * 64 + 63] = kNan;
    c.store();
    const Floats found = c.run();
    for (size_t i = 0; i < found.size(); ++i) {
      if (i / 32 == 4) {
        EXPECT_TRUE(std::isnan(found[i]));
      } else {
        EXPECT_EQ(found[i], clean[i]);
      }
    }
  }
}

TEST_P(PanelGemmKernelTest, NanAndInfinityOfOneWeightReachItsColumnOnly) {
  PanelCase c = random_case({.num_rows = 5, .k = 64});
  c.w[3 * 64 + 63] = kNan;
  c.w[22 * 64 + 2] = kInfinity;
  c.store();
  const Floats found = c.run();
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(std::isnan(found[i]), i % 32 == 3) << i;
    EXPECT_EQ(std::isinf(found[i]), i % 32 == 22) << i;
  }
}

TEST_P(PanelGemmKernelTest, SubnormalWeightsAreKeptByFmaAndZeroToTheDotInstructions) {
  // 1e-40 is subnormal in f32 and bf16, 1e-6 in f16: flushing any of them loses the result.
  const float tiny = kernel.weights == DType::kF16 ? 1e-6F : 1e-40F;
  const PanelShape shape{.num_rows = 5, .k = 32, .x_deviation = 1e10F, .w_deviation = tiny};
  if (!flushes_denormals()) return expect_matches_reference(shape);
  for (const float c : random_case(shape).run())
    EXPECT_EQ(c, 0.0F);
}

TEST_P(PanelGemmKernelTest, SubnormalInputsAreKeptByFmaAndZeroToTheDotInstructions) {
  const PanelShape shape{.num_rows = 5, .k = 32, .x_deviation = 1e-40F, .w_deviation = 1e3F};
  if (!flushes_denormals()) return expect_matches_reference(shape);
  for (const float c : random_case(shape).run())
    EXPECT_EQ(c, 0.0F);
}

TEST_P(PanelGemmKernelTest, SubnormalSumsAreKeptByFmaAndZeroToTheDotInstructions) {
  const PanelShape shape{.num_rows = 5, .k = 32, .x_deviation = 1e-37F, .w_deviation = 1e-4F};
  if (!flushes_denormals()) return expect_matches_reference(shape);
  for (const float c : random_case(shape).run())
    EXPECT_EQ(c, 0.0F);
}

TEST_P(PanelGemmKernelTest, SubnormalDifferencesAreKeptByFmaAndZeroToTheDotInstructions) {
  // Two normal products, 1.5 x 2^-126 and -2^-126, in one pair of k, in two pairs, in two tiles.
  for (const size_t second : {1U, 2U, 32U}) {
    PanelCase c = random_case({.num_rows = 1, .k = 64});
    std::fill(c.x.begin(), c.x.end(), 0.0F);
    std::fill(c.w.begin(), c.w.end(), kernel.weights == DType::kF16 ? 1.0F : 0x1p-63F);
    const float unit = kernel.weights == DType::kF16 ? 0x1p-126F : 0x1p-63F;
    c.x[0] = 1.5F * unit;
    c.x[second] = -unit;
    c.store();
    EXPECT_EQ(c.run(), Floats(kPanelWidth, flushes_denormals() ? 0.0F : 0x1p-127F)) << second;
  }
}

TEST_P(PanelGemmKernelTest, TakesTheLargestMagnitudesOfItsType) {
  const float largest = kernel.weights == DType::kF16    ? 65504.0F
                        : kernel.weights == DType::kBF16 ? 0x1.fep127F
                                                         : std::numeric_limits<float>::max();
  PanelCase c = random_case({.num_rows = 5, .k = 32, .x_deviation = 1e-3F});
  for (float& w : c.w)
    w = std::copysign(largest, w);
  c.store();
  EXPECT_EQ(std::fabs(c.w[0]), largest);
  EXPECT_TRUE(all_close(c.run(), c.reference(), c.tolerance()));
}

TEST_P(PanelGemmKernelTest, OverflowsToInfinityAsF32Does) {
  PanelCase c = random_case({.num_rows = 5, .k = 32});
  std::fill(c.x.begin(), c.x.end(), 1e38F);
  std::fill(c.w.begin(), c.w.end(), -2.0F);
  c.store();
  for (const float value : c.run())
    EXPECT_EQ(value, -kInfinity);
}

TEST_P(PanelGemmKernelTest, PaddedColumnsOfZerosAddNothing) {
  const PanelCase narrow = random_case({.num_rows = 7, .k = 64});
  PanelCase wide = random_case({.num_rows = 7, .k = 128});
  for (size_t i = 0; i < wide.x.size(); ++i)
    wide.x[i] = i % 128 < 64 ? narrow.x[i / 128 * 64 + i % 128] : 0.0F;
  for (size_t i = 0; i < wide.w.size(); ++i)
    wide.w[i] = i % 128 < 64 ? narrow.w[i / 128 * 64 + i % 128] : 0.0F;
  wide.store();
  EXPECT_EQ(wide.run(), narrow.run());
}

INSTANTIATE_TEST_SUITE_P(AllKernels, PanelGemmKernelTest,
                         testing::ValuesIn(panel_gemm_kernels().begin(),
                                           panel_gemm_kernels().end()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// What stands in for the hardware must be the hardware, where there is some.
TEST(AmxEmulationTest, HasTheBitsOfRealTiles) {
  if (!can_run(Isa::kAmxBf16)) GTEST_SKIP() << "needs " << to_string(Isa::kAmxBf16);
  SeededRng rng;
  KernelRequest request{
      .weights = DType::kBF16, .activations = ActivationDType::kBF16, .isas = IsaSet{}};
  request.isas.insert(Isa::kAmxEmulated);
  PanelCase c = random_panel(rng, select_panel_gemm(request), {.num_rows = 48, .k = 256});
  const Floats emulated = c.run();
  request.isas.insert(Isa::kAmxBf16);
  c.kernel = select_panel_gemm(request);
  EXPECT_EQ(c.run(), emulated) << "seed " << rng.seed();
}

}  // namespace
}  // namespace test
}  // namespace gantry
