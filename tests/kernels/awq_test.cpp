// Output errors from a Hessian against the samples themselves in f64, and AWQ's scales and clips.

#include "kernels/quant/awq.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/quant/gram_matrix.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

Floats normals(SeededRng& rng, int64_t count, float deviation = 1.0F) {
  Floats values(static_cast<size_t>(count));
  for (float& value : values)
    value = rng.normal(0.0F, deviation);
  return values;
}

Floats hessian_of(const Floats& rows, int64_t n) {
  GramMatrix gram(n);
  gram.add(rows, static_cast<int64_t>(rows.size()) / n, n, {});
  Floats hessian(static_cast<size_t>(n * n));
  gram.copy_to(hessian);
  return hessian;
}

// Of each row d: the sum over samples x of (d . x)^2, and of what |d . x| could have been.
struct Direct {
  double error = 0.0;
  double bound = 0.0;
};

Direct direct_error(const float* d, const Floats& rows, int64_t n, int64_t begin, int64_t count) {
  Direct direct;
  for (size_t r = 0; r < rows.size(); r += static_cast<size_t>(n)) {
    double sum = 0.0;
    double size = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const double product = static_cast<double>(d[i]) * rows[r + static_cast<size_t>(begin + i)];
      sum += product;
      size += std::fabs(product);
    }
    direct.error += sum * sum;
    direct.bound += size * size;
  }
  return direct;
}

TEST(OutputErrorTest, IsThatOfTheSamples) {
  SeededRng rng;
  constexpr int64_t kSamples = 70;
  for (const int64_t n : {1, 31, 32, 33, 100}) {
    const Floats samples = normals(rng, kSamples * n);
    const Floats hessian = hessian_of(samples, n);
    for (const int64_t begin : {int64_t{0}, n / 3}) {
      const int64_t count = n - begin;
      const OutputError error(hessian, n, begin, count);
      for (const int64_t rows : {1, 48, 50}) {
        const Floats difference = normals(rng, rows * count, 0.1F);
        std::vector<double> found(static_cast<size_t>(rows));
        error.rows(difference, found);
        for (int64_t r = 0; r < rows; ++r) {
          const Direct direct =
              direct_error(difference.data() + r * count, samples, n, begin, count);
          // Sums of f32 over samples and two times over columns, each rounded.
          const double tolerance =
              static_cast<double>(kSamples + 2 * n + 4) * 0x1p-24 * direct.bound;
          EXPECT_NEAR(found[static_cast<size_t>(r)], direct.error, tolerance)
              << "n " << n << " begin " << begin << " row " << r << " seed " << rng.seed();
        }
        EXPECT_DOUBLE_EQ(error.total(difference), std::accumulate(found.begin(), found.end(), 0.0));
      }
    }
  }
  expect_error([] { OutputError(Floats(9), 3, 2, 2); }, ErrorCode::kInvalidArgument, {"Hessian"});
}

TEST(AwqScalesTest, GrowWithTheInputsAndAreCentred) {
  const Floats squares = {16.0F, 1.0F, 0.0F, 256.0F};
  EXPECT_EQ(awq_scales(squares, 0.0, false), Floats(4, 1.0F));
  // sqrt(x^2) over the geometric mean of 1 and 16: the channel without input as the least.
  EXPECT_EQ(awq_scales(squares, 1.0, false), Floats({1.0F, 0.25F, 0.25F, 4.0F}));
  EXPECT_EQ(awq_scales(squares, 0.4, true), Floats({1.0F, 0.5F, 0.5F, 2.0F}));
  EXPECT_EQ(awq_scales(Floats(3, 0.0F), 1.0, false), Floats(3, 1.0F));
  const Floats wide = awq_scales(Floats({1e-30F, 1e30F}), 1.0, false);
  EXPECT_EQ(wide, Floats({1.0F / 64.0F, 64.0F}));
  expect_error([] { (void)awq_scales(Floats({-1.0F}), 1.0, false); }, ErrorCode::kInvalidArgument,
               {"-1"});
  EXPECT_EQ(awq_candidates(Floats(8, 3.0F), true).size(), 1U);  // nothing to choose from
  EXPECT_EQ(awq_candidates(squares, false).size(), 21U);
}

// A matrix whose inputs have one channel of a hundred times the others' size, in groups of 16.
class AwqTest : public testing::Test {
 protected:
  AwqTest() {
    weights = normals(rng, kOut * kIn, 0.02F);
    samples = normals(rng, 256 * kIn);
    for (size_t i = 3; i < samples.size(); i += kIn)
      samples[i] *= 100.0F;
    hessian = hessian_of(samples, kIn);
    for (int64_t i = 0; i < kIn; ++i)
      squares.push_back(hessian[static_cast<size_t>(i * kIn + i)]);
  }

  static constexpr int64_t kOut = 24;
  static constexpr int64_t kIn = 64;
  const WeightQuantization quantization{.element = WeightElement::kInt4, .group = 16};
  SeededRng rng;
  Floats weights;
  Floats samples;
  Floats hessian;
  Floats squares;
};

TEST_F(AwqTest, ErrorsAreThoseOfTheDequantizedWeights) {
  const OutputError error(hessian, kIn);
  const auto candidates = awq_candidates(squares, /*powers_of_two=*/true);
  const std::vector<double> errors =
      awq_errors(quantization, weights, kOut, kIn, error, candidates);
  ASSERT_EQ(errors.size(), candidates.size());
  for (size_t c = 0; c < candidates.size(); ++c) {
    Floats decoded = dequantize(
        quantize_weights(quantization, scale_columns(weights, candidates[c]), kOut, kIn));
    for (size_t i = 0; i < decoded.size(); ++i)
      decoded[i] = decoded[i] / candidates[c][i % kIn] - weights[i];
    // Scales are powers of two: the differences have the same bits.
    EXPECT_DOUBLE_EQ(errors[c], error.total(decoded)) << c << " seed " << rng.seed();
  }
  EXPECT_LT(*std::min_element(errors.begin(), errors.end()), 0.5 * errors[0])
      << "seed " << rng.seed();
}

TEST_F(AwqTest, ClipsLoseNoMoreThanNone) {
  for (const WeightElement element : {WeightElement::kInt4, WeightElement::kE2M1}) {
    WeightQuantization format = quantization;
    format.element = element;
    if (element == WeightElement::kE2M1) format.scale = ScaleType::kE4M3;  // two levels
    const Floats ones(kIn, 1.0F);
    const QuantizedWeights plain = quantize_weights(format, weights, kOut, kIn);
    const QuantizedWeights clipped = awq_weights(format, weights, kOut, ones, hessian, 0.0F);
    const OutputError error(hessian, kIn);
    const auto lost = [&](const QuantizedWeights& quantized) {
      Floats decoded = dequantize(quantized);
      for (size_t i = 0; i < decoded.size(); ++i)
        decoded[i] -= weights[i];
      return error.total(decoded);
    };
    EXPECT_LT(lost(clipped), lost(plain)) << "seed " << rng.seed();
    EXPECT_EQ(clipped.second, plain.second);
    for (size_t s = 0; s < plain.scales.size(); ++s) {
      EXPECT_LE(clipped.scales[s], plain.scales[s]);
      EXPECT_GT(clipped.scales[s], 0.0F);
    }
  }
}

TEST_F(AwqTest, HasNothingToClipIn8Bits) {
  WeightQuantization format = quantization;
  format.element = WeightElement::kInt8;
  const Floats ones(kIn, 1.0F);
  EXPECT_EQ(awq_weights(format, weights, kOut, ones, hessian, 0.0F).codes,
            quantize_weights(format, weights, kOut, kIn).codes);
}

}  // namespace
}  // namespace gantry::test
