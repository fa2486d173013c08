#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/export.h"
#include "kernels/quant/gptq.h"
#include "kernels/quant/quantize_weights.h"

namespace gantry GANTRY_API {

/// As quantize_weights, with codes chosen by GPTQ instead of one by one.
///
/// Scales are chosen when a group's turn comes, from weights that make up for the errors so far.
/// Where several rows share a scale (blocks, whole matrices) they are those of quantize_weights.
/// With columns in the order of activations either those too (no file then needs to hold an order
/// of groups), or columns whose turns follow each other share a group, and input_groups says which.
///
/// @param weights     [out, in], row-major; finite
/// @param shared_amax see quantize_weights
/// @param order_groups columns are put in groups in the order of activations
/// @throws Error as quantize_weights and gptq_quantize do
QuantizedWeights gptq_weights(const WeightQuantization& quantization,
                              std::span<const float> weights, int64_t out,
                              const GptqHessian& hessian, float shared_amax, const Threads& threads,
                              bool order_groups = false);

}  // namespace gantry
