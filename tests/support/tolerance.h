#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace gantry::test {

/// Half the distance from 1 to the next f32: the largest relative error of one f32 rounding.
inline constexpr double kF32Rounding = 0x1p-24;
/// The smallest positive f32: results below the normal range are off by at most this much.
inline constexpr double kF32Tiny = 0x1p-149;

/// How far an f32 dot product of k terms may be from the exact one, in whatever order it is summed.
///
/// With u = 2^-24, every term passes through at most k + 1 roundings: one of its product (none with
/// FMA), at most k - 1 of additions, and one where the bias is added. Each multiplies the term by
/// (1 + d), |d| <= u, so the sum of the errors is at most
///   ((1 + u)^(k + 1) - 1) * (k max|x| max|w| + |bias|).
/// (1 + u)^n - 1 <= 1.01 n u while n u <= 0.01, that is for k up to 160 000. Below the normal range
/// each of the roundings is absolute instead: half a subnormal step, hence the last term.
inline double dot_tolerance(int64_t k, double max_x, double max_w, double max_bias = 0.0) {
  const auto terms = static_cast<double>(k);
  return 1.01 * (terms + 1) * kF32Rounding * (terms * max_x * max_w + max_bias) +
         (terms + 1) * kF32Tiny;
}

/// The error of a formula of a few f32 operations whose condition is near 1: `roundings` of them
/// relative to the result, and as many subnormal steps.
inline double relative_tolerance(double expected, double roundings) {
  return roundings * (kF32Rounding * std::fabs(expected) + kF32Tiny);
}

inline double largest_magnitude(std::span<const float> values) {
  double largest = 0.0;
  for (const float value : values)
    largest = std::fmax(largest, std::fabs(value));
  return largest;
}

/// Compares element by element, NaN with NaN; says which element is farthest off and by how much.
inline testing::AssertionResult all_close(std::span<const float> found,
                                          std::span<const double> expected, double tolerance) {
  if (found.size() != expected.size()) {
    return testing::AssertionFailure()
           << "expected " << expected.size() << " values, found " << found.size();
  }
  double worst = tolerance;
  size_t worst_idx = found.size();
  for (size_t i = 0; i < found.size(); ++i) {
    const double value = found[i];
    // f32 rounds what is too large for it to infinity, and the reference must be judged as f32.
    const double wanted = std::isfinite(static_cast<float>(expected[i]))
                              ? expected[i]
                              : static_cast<float>(expected[i]);
    if (value == wanted || (std::isnan(value) && std::isnan(wanted))) continue;
    const double error = std::fabs(value - wanted);
    if (error <= worst) continue;
    worst = std::isnan(error) ? INFINITY : error;
    worst_idx = i;
  }
  if (worst_idx == found.size()) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "worst at " << worst_idx << ": found " << found[worst_idx] << ", expected "
         << expected[worst_idx] << ", off by " << worst << ", tolerance " << tolerance;
}

}  // namespace gantry::test
