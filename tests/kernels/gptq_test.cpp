// The GPTQ solver against the published algorithm, written column by column in f64.

#include "kernels/quant/gptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/error.h"
#include "kernels/quant/gram_matrix.h"
#include "kernels/quant/integer_grid.h"
#include "tests/kernels/gptq_reference.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

constexpr double kSumError = 1e-4;  // of f32 against f64, in steps of the grid: see compare()

// Rows with channels that are correlated and of very different sizes, as activations are.
std::vector<float> make_rows(SeededRng& rng, int64_t num_rows, int64_t n) {
  std::vector<float> size(static_cast<size_t>(n));
  for (float& s : size)
    s = std::exp(rng.normal(0.0F, 1.0F));
  std::vector<float> rows(static_cast<size_t>(num_rows * n));
  for (int64_t r = 0; r < num_rows; ++r) {
    const float common = rng.normal();
    for (int64_t i = 0; i < n; ++i)
      rows[static_cast<size_t>(r * n + i)] =
          size[static_cast<size_t>(i)] * (rng.normal() + 0.7F * common);
  }
  return rows;
}

std::vector<float> hessian_of(const std::vector<float>& rows, int64_t n) {
  GramMatrix gram(n);
  gram.add(rows, static_cast<int64_t>(rows.size()) / n, n, {});
  std::vector<float> hessian(static_cast<size_t>(n * n));
  gram.copy_to(hessian);
  return hessian;
}

std::vector<float> values_of(const GptqMatrix& matrix, int64_t out, int64_t n, int64_t group) {
  const int64_t groups = group == 0 ? 1 : (n + group - 1) / group;
  std::vector<float> values(static_cast<size_t>(out * n));
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t g = group == 0                    ? 0
                        : matrix.input_groups.empty() ? i / group
                                                      : matrix.input_groups[static_cast<size_t>(i)];
      const GptqScale& scale = matrix.scales[static_cast<size_t>(o * groups + g)];
      const auto at = static_cast<size_t>(o * n + i);
      values[at] = static_cast<float>(matrix.codes[at] - scale.zero) * scale.step;
    }
  }
  return values;
}

// ||X (W - Q)^T||^2, of each row of W.
std::vector<double> row_errors(const std::vector<float>& rows, const std::vector<float>& w,
                               const std::vector<float>& q, int64_t out, int64_t n) {
  std::vector<double> errors(static_cast<size_t>(out), 0.0);
  for (size_t r = 0; r < rows.size() / static_cast<size_t>(n); ++r) {
    for (size_t o = 0; o < static_cast<size_t>(out); ++o) {
      double y = 0.0;
      for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        const size_t at = o * static_cast<size_t>(n) + i;
        y += static_cast<double>(rows[r * static_cast<size_t>(n) + i]) * (w[at] - q[at]);
      }
      errors[o] += y * y;
    }
  }
  return errors;
}

GptqScales static_scales(const GptqGrid& grid, const std::vector<float>& w, int64_t out, int64_t n,
                         int64_t group) {
  GptqScales scales{.group = group};
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < n; i += group) {
      scales.fixed.push_back(grid.choose(std::span(w).subspan(
          static_cast<size_t>(o * n + i), static_cast<size_t>(std::min(group, n - i)))));
    }
  }
  return scales;
}

struct GptqCase {
  int64_t out;
  int64_t n;
  int64_t group;
  int bits;
  bool symmetric;
  GptqOrder order;
  bool fixed;  // static groups
};

class GptqSolverTest : public testing::TestWithParam<GptqCase> {};

// Codes must be equal. In f32 a weight that stands within `kSumError` steps of the middle between
// two codes may fall to the other side, and all later columns of that row then differ: the
// reference says which rows have such a weight, and those are left out: about n * 2e-4 of them, and
// those where a symmetric group begins with its largest weight, a negative one: always a tie.
TEST_P(GptqSolverTest, RoundsLikeThePublishedAlgorithmInDoublePrecision) {
  const GptqCase& c = GetParam();
  SeededRng rng;
  SCOPED_TRACE(testing::Message() << "seed " << rng.seed());
  const std::vector<float> rows = make_rows(rng, 2 * c.n + 3, c.n);
  const std::vector<float> hessian = hessian_of(rows, c.n);
  const std::vector<float> w = rng.normals(static_cast<size_t>(c.out * c.n), 0.05F);
  const IntegerGrid grid(c.bits, c.symmetric);
  const GptqSettings settings{.damping = 0.01, .order = c.order};
  const GptqScales scales =
      c.fixed ? static_scales(grid, w, c.out, c.n, c.group) : GptqScales{.group = c.group};
  const GptqHessian factors(hessian, c.n, settings, {.count = 3, .executor = {}});
  const GptqMatrix solved =
      gptq_quantize(w, c.out, factors, scales, grid, {.count = 3, .executor = {}});
  const ReferenceGptq expected =
      reference_gptq(w, c.out, c.n, hessian, settings, scales, {c.bits, c.symmetric});

  EXPECT_EQ(solved.input_groups, expected.input_groups);
  int64_t compared = 0;
  for (int64_t o = 0; o < c.out; ++o) {
    if (expected.closest_tie[static_cast<size_t>(o)] < kSumError) continue;
    ++compared;
    for (int64_t i = 0; i < c.n; ++i) {
      const auto at = static_cast<size_t>(o * c.n + i);
      ASSERT_EQ(solved.codes[at], expected.codes[at]) << "row " << o << ", column " << i;
    }
    const auto groups = static_cast<int64_t>(solved.scales.size()) / c.out;
    for (int64_t g = 0; g < groups; ++g) {
      const auto at = static_cast<size_t>(o * groups + g);
      EXPECT_NEAR(solved.scales[at].step, expected.steps[at], 1e-4 * expected.steps[at]);
    }
  }
  EXPECT_GE(2 * compared, c.out);
}

INSTANTIATE_TEST_SUITE_P(
    All, GptqSolverTest,
    testing::Values(GptqCase{40, 96, 32, 4, true, GptqOrder::kInOrder, false},
                    GptqCase{49, 100, 32, 4, false, GptqOrder::kInOrder, false},
                    GptqCase{24, 150, 64, 4, true, GptqOrder::kByActivation, false},
                    GptqCase{20, 128, 64, 4, false, GptqOrder::kByActivation, true},
                    GptqCase{21, 64, 16, 4, true, GptqOrder::kInOrder, false},
                    GptqCase{9, 65, 8, 3, false, GptqOrder::kByActivation, false},
                    GptqCase{50, 33, 0, 8, true, GptqOrder::kInOrder, false},
                    GptqCase{1, 1, 0, 4, false, GptqOrder::kInOrder, false},
                    GptqCase{3, 31, 0, 2, false, GptqOrder::kByActivation, false}));

TEST(GptqTest, FactorsTheInverseOfTheDampedHessian) {
  SeededRng rng;
  SCOPED_TRACE(testing::Message() << "seed " << rng.seed());
  for (const int64_t n : {1, 31, 32, 97}) {
    const std::vector<float> hessian = hessian_of(make_rows(rng, 3 * n, n), n);
    const GptqHessian factors(hessian, n, {.damping = 0.05}, {});
    double mean = 0.0;
    for (int64_t i = 0; i < n; ++i)
      mean += hessian[static_cast<size_t>(i * n + i)] / static_cast<double>(n);
    // U H' U^T = I, as U^T U = H'^-1.
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0.0;
        for (int64_t k = i; k < n; ++k) {
          for (int64_t l = j; l < n; ++l) {
            const double h = hessian[static_cast<size_t>(k * n + l)] + (k == l ? 0.05 * mean : 0.0);
            sum += static_cast<double>(factors.factor(i, k)) * h * factors.factor(j, l);
          }
        }
        // f32 throughout, with a condition of at most n / damping.
        ASSERT_NEAR(sum, i == j ? 1.0 : 0.0, 1e-3) << n << " " << i << " " << j;
      }
    }
  }
}

TEST(GptqTest, AnIdentityHessianGivesRoundToNearest) {
  SeededRng rng;
  SCOPED_TRACE(testing::Message() << "seed " << rng.seed());
  for (const float factor : {1.0F, 3.0F, 0.0F}) {  // 0: no sample at all
    for (const GptqOrder order : {GptqOrder::kInOrder, GptqOrder::kByActivation}) {
      constexpr int64_t kOut = 50;
      constexpr int64_t kIn = 100;
      std::vector<float> hessian(kIn * kIn, 0.0F);
      for (size_t i = 0; i < kIn; ++i)
        hessian[i * kIn + i] = factor;
      const std::vector<float> w = rng.normals(kOut * kIn);
      const IntegerGrid grid(4, false);
      const GptqHessian factors(hessian, kIn, {.damping = 0.01, .order = order}, {});
      const GptqMatrix solved = gptq_quantize(w, kOut, factors, {.group = 32}, grid, {});
      const GptqScales nearest = static_scales(grid, w, kOut, kIn, 32);
      EXPECT_TRUE(solved.input_groups.empty());
      EXPECT_EQ(factors.num_dead(), factor == 0.0F ? kIn : 0);
      for (int64_t o = 0; o < kOut; ++o) {
        for (int64_t i = 0; i < kIn; ++i) {
          const auto at = static_cast<size_t>(o * kIn + i);
          const GptqScale& scale = nearest.fixed[static_cast<size_t>(o * 4 + i / 32)];
          uint8_t code = 0;
          float value = 0;
          grid.round(1, &w[at], &scale, &code, &value);
          ASSERT_EQ(solved.codes[at], code);
          ASSERT_EQ(solved.scales[static_cast<size_t>(o * 4 + i / 32)].step, scale.step);
        }
      }
    }
  }
}

TEST(GptqTest, BeatsRoundToNearestOnHeldOutTokens) {
  SeededRng rng;
  SCOPED_TRACE(testing::Message() << "seed " << rng.seed());
  constexpr int64_t kOut = 32;
  constexpr int64_t kIn = 192;
  constexpr int64_t kTokens = 768;
  // One draw of channels: calibration and held-out tokens are of one kind.
  const std::vector<float> all = make_rows(rng, 2 * kTokens, kIn);
  const std::vector<float> calibration(all.begin(), all.begin() + kTokens * kIn);
  const std::vector<float> held_out(all.begin() + kTokens * kIn, all.end());
  const std::vector<float> hessian = hessian_of(calibration, kIn);
  const std::vector<float> w = rng.normals(kOut * kIn, 0.05F);
  for (const int bits : {3, 4}) {
    const IntegerGrid grid(bits, true);
    const auto nearest_hessian = std::vector<float>(kIn * kIn, 0.0F);
    const auto solve = [&](const std::vector<float>& h, GptqOrder order) {
      const GptqHessian factors(h, kIn, {.damping = 0.01, .order = order}, {});
      const GptqMatrix solved = gptq_quantize(w, kOut, factors, {.group = 64}, grid, {});
      const auto errors = row_errors(held_out, w, values_of(solved, kOut, kIn, 64), kOut, kIn);
      return std::accumulate(errors.begin(), errors.end(), 0.0);
    };
    const double nearest = solve(nearest_hessian, GptqOrder::kInOrder);
    const double in_order = solve(hessian, GptqOrder::kInOrder);
    const double by_activation = solve(hessian, GptqOrder::kByActivation);
    EXPECT_LT(in_order, nearest) << bits;
    EXPECT_LT(by_activation, nearest) << bits;
  }
}

TEST(GptqTest, DeadColumnsAreRoundedToNearestAndDisturbNothing) {
  SeededRng rng;
  SCOPED_TRACE(testing::Message() << "seed " << rng.seed());
  constexpr int64_t kOut = 8;
  constexpr int64_t kIn = 96;
  std::vector<float> rows = make_rows(rng, 200, kIn);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i % kIn == 5 || i % kIn == 70) rows[i] = 0.0F;
  }
  const std::vector<float> hessian = hessian_of(rows, kIn);
  const GptqHessian factors(hessian, kIn, {}, {});
  EXPECT_EQ(factors.num_dead(), 2);
  const std::vector<float> w = rng.normals(kOut * kIn);
  const IntegerGrid grid(4, true);
  const GptqScales scales = static_scales(grid, w, kOut, kIn, 32);
  const GptqMatrix solved = gptq_quantize(w, kOut, factors, scales, grid, {});
  for (int64_t o = 0; o < kOut; ++o) {
    for (const int64_t i : {5, 70}) {
      const auto at = static_cast<size_t>(o * kIn + i);
      uint8_t code = 0;
      float value = 0;
      grid.round(1, &w[at], &scales.fixed[static_cast<size_t>(o * 3 + i / 32)], &code, &value);
      EXPECT_EQ(solved.codes[at], code);
    }
  }
}

TEST(GptqTest, TheNumberOfThreadsChangesNothing) {
  SeededRng rng;
  constexpr int64_t kIn = 160;
  const std::vector<float> rows = make_rows(rng, 300, kIn);
  const std::vector<float> w = rng.normals(100 * kIn);
  const IntegerGrid grid(4, false);
  const auto solve = [&](int threads) {
    GramMatrix gram(kIn);
    gram.add(rows, 300, kIn, {.count = threads, .executor = {}});
    std::vector<float> hessian(kIn * kIn);
    gram.copy_to(hessian);
    const GptqHessian factors(hessian, kIn, {}, {.count = threads, .executor = {}});
    return gptq_quantize(w, 100, factors, {.group = 32}, grid, {.count = threads, .executor = {}})
        .codes;
  };
  EXPECT_EQ(solve(1), solve(4));
}

TEST(GptqTest, RaisesDampingOfAHessianThatIsNotPositiveDefinite) {
  // Eigenvalues 1 + 1.5 and 1 - 1.5: no sum of x x^T, but what rounding may leave.
  const std::vector<float> indefinite = {1.0F, 1.5F, 1.5F, 1.0F};
  const GptqHessian factors(indefinite, 2, {.damping = 0.01}, {});
  EXPECT_DOUBLE_EQ(factors.damping(), 1.0);
  const std::vector<float> hopeless = {1.0F, 3.0F, 3.0F, 1.0F};
  EXPECT_THROW(GptqHessian(hopeless, 2, {}, {}), Error);
}

TEST(GptqTest, RefusesWhatDoesNotFit) {
  const std::vector<float> identity = {1.0F, 0.0F, 0.0F, 1.0F};
  const std::vector<float> nan = {1.0F, 0.0F, 0.0F, std::nanf("")};
  const std::vector<float> negative = {1.0F, 0.0F, 0.0F, -1.0F};
  EXPECT_THROW(GptqHessian(identity, 3, {}, {}), Error);
  EXPECT_THROW(GptqHessian(nan, 2, {}, {}), Error);
  EXPECT_THROW(GptqHessian(negative, 2, {}, {}), Error);
  EXPECT_THROW(GptqHessian(identity, 2, {.damping = 0.0}, {}), Error);
  const GptqHessian factors(identity, 2, {}, {});
  const IntegerGrid grid(4, true);
  const std::vector<float> w = {1.0F, 2.0F, 3.0F, 4.0F};
  EXPECT_THROW(gptq_quantize(w, 3, factors, {}, grid, {}), Error);
  EXPECT_THROW(gptq_quantize(w, 2, factors, {.group = -1}, grid, {}), Error);
  EXPECT_THROW(gptq_quantize(w, 2, factors, {.group = 1, .fixed = {GptqScale{}}}, grid, {}), Error);
  const std::vector<float> many(100 * 100, 0.0F);
  const GptqHessian wide(many, 100, {}, {});
  EXPECT_THROW(gptq_quantize(std::span(many).first(100), 1, wide, {.group = 48}, grid, {}), Error);
  EXPECT_TRUE(gptq_quantize({}, 0, wide, {.group = 32}, grid, {}).codes.empty());
}

TEST(GramMatrixTest, IsTheSumOfOuterProducts) {
  SeededRng rng;
  SCOPED_TRACE(testing::Message() << "seed " << rng.seed());
  for (const auto& [num_rows, n] :
       {std::pair<int64_t, int64_t>{1, 1}, {3, 33}, {513, 50}, {1030, 31}, {0, 7}}) {
    const std::vector<float> rows = rng.normals(static_cast<size_t>(num_rows * (n + 2)));
    GramMatrix gram(n);
    const int64_t half = num_rows / 2;  // in two pieces, rows n + 2 apart
    gram.add(rows, half, n + 2, {});
    gram.add(std::span(rows).subspan(static_cast<size_t>(half * (n + 2))), num_rows - half, n + 2,
             {});
    std::vector<float> matrix(static_cast<size_t>(n * n));
    gram.copy_to(matrix);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0.0;
        double size = 0.0;
        for (int64_t r = 0; r < num_rows; ++r) {
          const double term = static_cast<double>(rows[static_cast<size_t>(r * (n + 2) + i)]) *
                              rows[static_cast<size_t>(r * (n + 2) + j)];
          sum += term;
          size += std::abs(term);
        }
        // Rounding of a sum of `num_rows` terms.
        ASSERT_NEAR(matrix[static_cast<size_t>(i * n + j)], sum,
                    static_cast<double>(num_rows + 2) * 6e-8 * size);
      }
    }
    gram.clear();
    gram.copy_to(matrix);
    EXPECT_THAT(matrix, testing::Each(0.0F));
  }
}

}  // namespace
}  // namespace gantry::test
