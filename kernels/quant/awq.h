#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/quant/output_error.h"
#include "kernels/quant/quantize_weights.h"

namespace gantry GANTRY_API {

/// Activation-aware scales of a matrix' input channels: the columns of W are multiplied by s before
/// they are rounded and its inputs divided, so that channels with large inputs lose less.
///
///   s_i = (mean x_i^2)^(alpha / 2), divided by the geometric mean of the least and the largest
///
/// with every s in [1/64, 64]. A channel without any input has the least. alpha = 0 gives ones.
///
/// @param squares       [n] sum of x_i^2, the diagonal of the Hessian; at least 0
/// @param powers_of_two each s rounded to one: what takes the scales' inverse loses no bit
/// @source Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and
///         Acceleration", section 3.2, with the root mean square for the mean magnitude
std::vector<float> awq_scales(std::span<const float> squares, double alpha, bool powers_of_two);

/// The scales among which a search chooses: for alpha = 0, 0.05 .. 1, ones first.
std::vector<std::vector<float>> awq_candidates(std::span<const float> squares, bool powers_of_two);

/// W with column i multiplied by scales[i].
std::vector<float> scale_columns(std::span<const float> weights, std::span<const float> scales);

/// The squared error of the outputs, for each of the candidates, if W is rounded to nearest under
/// its scales.
/// @param weights [out, in]; finite
std::vector<double> awq_errors(const WeightQuantization& quantization,
                               std::span<const float> weights, int64_t out, int64_t in,
                               const OutputError& error,
                               std::span<const std::vector<float>> candidates);

/// As quantize_weights; of formats of 4 bits with scales of one row, each scale's range is clipped
/// to the part (1, 0.95 .. 0.55) that loses least of the outputs, by its own block of the Hessian;
/// all clips are dropped where together they lose more than none.
///
/// @param scaled  [out, in], columns already multiplied by `scales`
/// @param scales  [in]
/// @param hessian [in, in] of the inputs before they are divided by the scales
/// @source the clip search of the same paper's code, with the block of the Hessian for its samples
QuantizedWeights awq_weights(const WeightQuantization& quantization, std::span<const float> scaled,
                             int64_t out, std::span<const float> scales,
                             std::span<const float> hessian, float shared_amax);

}  // namespace gantry
