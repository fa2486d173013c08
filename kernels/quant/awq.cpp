#include "kernels/quant/awq.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr int kAlphas = 20;
constexpr int kClips = 10;
constexpr float kClipStep = 0.05F;

// (Q(W s) - W s) / s: how far the weights are from W, under inputs that are not scaled.
std::vector<float> difference_of(const QuantizedWeights& quantized, std::span<const float> scaled,
                                 std::span<const float> scales) {
  std::vector<float> difference = dequantize(quantized);
  for (size_t at = 0; at < difference.size(); at += scales.size()) {
    for (size_t i = 0; i < scales.size(); ++i)
      difference[at + i] = (difference[at + i] - scaled[at + i]) / scales[i];
  }
  return difference;
}

// Columns begin .. begin + count - 1 of W[out, in].
std::vector<float> columns_of(std::span<const float> weights, int64_t out, int64_t in,
                              int64_t begin, int64_t count) {
  std::vector<float> columns(static_cast<size_t>(out * count));
  for (int64_t o = 0; o < out; ++o)
    std::copy_n(weights.data() + o * in + begin, count, columns.data() + o * count);
  return columns;
}

// For each row the part of one group's range that loses least.
std::vector<float> group_clips(const WeightQuantization& whole, std::span<const float> columns,
                               int64_t out, std::span<const float> scales, const OutputError& error,
                               float shared_amax) {
  WeightQuantization quantization = whole;
  quantization.group = 0;
  const auto rows = static_cast<size_t>(out);
  const auto count = static_cast<int64_t>(scales.size());
  std::vector<float> best(rows, 1.0F);
  std::vector<double> least(rows);
  std::vector<double> errors(rows);
  for (int step = 0; step < kClips; ++step) {
    const std::vector<float> clips(rows, 1.0F - kClipStep * static_cast<float>(step));
    const QuantizedWeights tried =
        quantize_weights(quantization, columns, out, count, shared_amax, clips);
    error.rows(difference_of(tried, columns, scales), errors);
    for (size_t r = 0; r < rows; ++r) {
      if (step > 0 && errors[r] >= least[r]) continue;
      least[r] = errors[r];
      best[r] = clips[r];
    }
  }
  return best;
}

}  // namespace

std::vector<float> awq_scales(std::span<const float> squares, double alpha, bool powers_of_two) {
  constexpr float kLargest = 64.0F;
  float least = 0.0F;
  float largest = 0.0F;
  for (const float square : squares) {
    GANTRY_CHECK(square >= 0.0F && std::isfinite(square), ErrorCode::kInvalidArgument,
                 "AWQ: expected a sum of squares, found {}", square);
    if (square > 0.0F) least = least > 0.0F ? std::min(least, square) : square;
    largest = std::max(largest, square);
  }
  std::vector<float> scales(squares.size(), 1.0F);
  if (!(largest > 0.0F)) return scales;
  const double middle = (std::log2(least) + std::log2(largest)) / 2.0;
  for (size_t i = 0; i < scales.size(); ++i) {
    double exponent = (std::log2(std::max(squares[i], least)) - middle) * alpha / 2.0;
    if (powers_of_two) exponent = std::nearbyint(exponent);
    scales[i] = std::clamp(static_cast<float>(std::exp2(exponent)), 1.0F / kLargest, kLargest);
  }
  return scales;
}

std::vector<std::vector<float>> awq_candidates(std::span<const float> squares, bool powers_of_two) {
  std::vector<std::vector<float>> candidates;
  for (int step = 0; step <= kAlphas; ++step) {
    std::vector<float> scales =
        awq_scales(squares, static_cast<double>(step) / kAlphas, powers_of_two);
    if (candidates.empty() || scales != candidates.back()) candidates.push_back(std::move(scales));
  }
  return candidates;
}

std::vector<float> scale_columns(std::span<const float> weights, std::span<const float> scales) {
  std::vector<float> scaled(weights.begin(), weights.end());
  for (size_t at = 0; at < scaled.size(); at += scales.size()) {
    for (size_t i = 0; i < scales.size(); ++i)
      scaled[at + i] *= scales[i];
  }
  return scaled;
}

std::vector<double> awq_errors(const WeightQuantization& quantization,
                               std::span<const float> weights, int64_t out, int64_t in,
                               const OutputError& error,
                               std::span<const std::vector<float>> candidates) {
  std::vector<double> errors;
  for (const std::vector<float>& scales : candidates) {
    GANTRY_CHECK(static_cast<int64_t>(scales.size()) == in, ErrorCode::kInvalidArgument,
                 "AWQ: expected {} scales, found {}", in, scales.size());
    const std::vector<float> scaled = scale_columns(weights, scales);
    const QuantizedWeights quantized = quantize_weights(quantization, scaled, out, in);
    errors.push_back(error.total(difference_of(quantized, scaled, scales)));
  }
  return errors;
}

QuantizedWeights awq_weights(const WeightQuantization& quantization, std::span<const float> scaled,
                             int64_t out, std::span<const float> scales,
                             std::span<const float> hessian, float shared_amax) {
  const auto in = static_cast<int64_t>(scales.size());
  QuantizedWeights plain = quantize_weights(quantization, scaled, out, in, shared_amax);
  if (bits_of(quantization.element) > 4 || quantization.rows != 1) return plain;
  const float amax = shared_amax > 0.0F ? shared_amax : weight_range(scaled).amax();
  const int64_t groups = quantization.num_groups(in);
  const int64_t group = quantization.group > 0 ? quantization.group : in;
  std::vector<float> clips(static_cast<size_t>(out * groups));
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * group;
    const int64_t count = std::min(group, in - begin);
    const OutputError error(hessian, in, begin, count);
    const std::vector<float> chosen = group_clips(
        quantization, columns_of(scaled, out, in, begin, count), out,
        scales.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)), error, amax);
    for (int64_t o = 0; o < out; ++o)
      clips[static_cast<size_t>(o * groups + g)] = chosen[static_cast<size_t>(o)];
  }
  QuantizedWeights clipped = quantize_weights(quantization, scaled, out, in, shared_amax, clips);
  const OutputError error(hessian, in);
  const bool pays = error.total(difference_of(clipped, scaled, scales)) <
                    error.total(difference_of(plain, scaled, scales));
  return pays ? clipped : plain;
}

}  // namespace gantry
