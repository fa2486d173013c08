#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/quant/gptq.h"

namespace gantry::test {

struct ReferenceGrid {
  int bits;
  bool symmetric;
};

struct ReferenceGptq {
  std::vector<uint8_t> codes;  // [out, in]
  std::vector<double> steps;   // [out, groups]
  std::vector<int32_t> input_groups;
  std::vector<double> closest_tie;  // [out]: least distance of a weight from a tie, in steps
};

/// Algorithm 1 of the GPTQ paper in f64, one row and column at a time, with the inverse of the
/// Hessian written out: after a column is rounded, its row and column are eliminated from the
/// inverse (equation 3 of the paper: Gaussian elimination) and the rest of the weights is updated.
inline ReferenceGptq reference_gptq(const std::vector<float>& weights, int64_t out, int64_t n,
                                    const std::vector<float>& hessian, const GptqSettings& settings,
                                    const GptqScales& scales, const ReferenceGrid& grid) {
  const auto size = static_cast<size_t>(n);
  std::vector<size_t> order(size);
  std::iota(order.begin(), order.end(), 0u);
  if (settings.order == GptqOrder::kByActivation) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return hessian[a * size + a] > hessian[b * size + b];
    });
  }
  double mean = 0.0;
  for (size_t i = 0; i < size; ++i)
    mean += hessian[i * size + i] / static_cast<double>(n);
  // Gauss-Jordan of [H' | I].
  std::vector<std::vector<double>> h(size, std::vector<double>(size));
  std::vector<std::vector<double>> inverse(size, std::vector<double>(size, 0.0));
  for (size_t i = 0; i < size; ++i) {
    for (size_t j = 0; j < size; ++j)
      h[i][j] = hessian[order[i] * size + order[j]] + (i == j ? settings.damping * mean : 0.0);
    inverse[i][i] = 1.0;
  }
  for (size_t k = 0; k < size; ++k) {
    const double pivot = h[k][k];
    for (size_t j = 0; j < size; ++j) {
      h[k][j] /= pivot;
      inverse[k][j] /= pivot;
    }
    for (size_t i = 0; i < size; ++i) {
      if (i == k) continue;
      const double factor = h[i][k];
      for (size_t j = 0; j < size; ++j) {
        h[i][j] -= factor * h[k][j];
        inverse[i][j] -= factor * inverse[k][j];
      }
    }
  }
  const size_t group = scales.group == 0 ? size : static_cast<size_t>(scales.group);
  const size_t groups = (size + group - 1) / group;
  const double largest = (1 << grid.bits) - 1;
  ReferenceGptq result;
  result.codes.resize(static_cast<size_t>(out) * size);
  result.steps.resize(static_cast<size_t>(out) * groups);
  result.closest_tie.assign(static_cast<size_t>(out), std::numeric_limits<double>::infinity());
  const bool sorted = std::is_sorted(order.begin(), order.end());
  if (scales.fixed.empty() && !sorted && groups > 1) {
    result.input_groups.resize(size);
    for (size_t i = 0; i < size; ++i)
      result.input_groups[order[i]] = static_cast<int32_t>(i / group);
  }
  std::vector<std::vector<std::vector<double>>> left;  // inverses of what is left, by column
  left.push_back(inverse);
  for (size_t k = 0; k + 1 < size; ++k) {
    auto next = left.back();
    for (size_t i = k; i < size; ++i) {
      for (size_t j = k; j < size; ++j)
        next[i][j] -= left.back()[i][k] * left.back()[k][j] / left.back()[k][k];
    }
    left.push_back(next);
  }
  for (size_t o = 0; o < static_cast<size_t>(out); ++o) {
    std::vector<double> w(size);
    for (size_t i = 0; i < size; ++i)
      w[i] = weights[o * size + order[i]];
    double step = 1.0;
    double zero = 0.0;
    for (size_t i = 0; i < size; ++i) {
      if (!scales.fixed.empty()) {
        const GptqScale& fixed = scales.fixed[o * groups + order[i] / group];
        step = fixed.step;
        zero = fixed.zero;
        result.steps[o * groups + order[i] / group] = step;
      } else if (i % group == 0) {
        double low = 0.0;
        double high = 0.0;
        for (size_t j = i; j < std::min(size, i + group); ++j) {
          low = std::min(low, w[j]);
          high = std::max(high, w[j]);
        }
        step = grid.symmetric ? 2.0 * std::max(high, -low) / largest : (high - low) / largest;
        zero = grid.symmetric ? (largest + 1.0) / 2.0
                              : std::clamp(std::nearbyint(-low / step), 0.0, largest);
        if (!grid.symmetric) {
          const double position = -low / step;
          result.closest_tie[o] =
              std::min(result.closest_tie[o], std::abs(position - std::floor(position) - 0.5));
        }
        result.steps[o * groups + i / group] = step;
      }
      const double position = w[i] / step;
      const double code = std::clamp(std::nearbyint(position) + zero, 0.0, largest);
      const auto clamped = [&](double q) { return std::clamp(q + zero, 0.0, largest); };
      if (clamped(std::floor(position)) != clamped(std::floor(position) + 1.0)) {
        result.closest_tie[o] =
            std::min(result.closest_tie[o], std::abs(position - std::floor(position) - 0.5));
      }
      result.codes[o * size + order[i]] = static_cast<uint8_t>(code);
      const double error = (w[i] - (code - zero) * step) / left[i][i][i];
      for (size_t j = i + 1; j < size; ++j)
        w[j] -= error * left[i][i][j];
    }
  }
  return result;
}

}  // namespace gantry::test
