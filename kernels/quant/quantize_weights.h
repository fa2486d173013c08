#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/cpu_features.h"
#include "kernels/base/export.h"
#include "kernels/quant/quantize_weight_rows.h"
#include "kernels/quant/weight_quantization.h"

namespace gantry GANTRY_API {

/// A quantized matrix W[out, in] before any file's packing.
///
///   W[o, i] = (value(codes[o, i]) - zeros[b, g]) * scales[b, g] (* or / second)
///
/// with b = o / rows, g = i / group of its WeightQuantization, or input_groups[i].
struct QuantizedWeights {
  WeightQuantization quantization;
  int64_t out = 0;
  int64_t in = 0;
  std::vector<uint8_t> codes{};  ///< [out, in]; integers plus 2^(bits - 1)
  std::vector<float> scales{};   ///< [row blocks, groups], values of the stored type
  std::vector<uint8_t> zeros{};  ///< [row blocks, groups] of integers: the code of 0; else empty
  float second = 1.0F;           ///< second_scale; 1 without two levels
  /// [in] the group of each column, where they were put in groups by activation order (GPTQ);
  /// empty: i / group.
  std::vector<int32_t> input_groups{};

  [[nodiscard]] GroupScale scale_of(int64_t o, int64_t i) const noexcept;
};

/// The row passes for this machine.
const WeightRowOps& weight_row_ops(IsaSet available) noexcept;

/// The smallest and largest of `weights`, which is not empty; {0, 0} of none.
/// @param weights finite
WeightRange weight_range(std::span<const float> weights, IsaSet available = host_isas()) noexcept;

/// Rounds every weight to the nearest code (RTN) under scales that group_scale chooses.
/// @param weights     [out, in], row-major; finite
/// @param shared_amax with two levels or one scale for the whole matrix: the largest magnitude of
///                    all matrices that are to have the same one, at least this one's; 0: its own
/// @param clips       [row blocks, groups], how much of a scale's range counts, in (0, 1]: weights
///                    beyond saturate; empty: all of it
/// @throws Error kUnsupported as group_scale does; kInvalidArgument for sizes that do not fit
QuantizedWeights quantize_weights(const WeightQuantization& quantization,
                                  std::span<const float> weights, int64_t out, int64_t in,
                                  float shared_amax = 0.0F, std::span<const float> clips = {},
                                  IsaSet available = host_isas());

/// The same with the scales, zero points and second scale of `like`: only codes are chosen.
QuantizedWeights quantize_like(const QuantizedWeights& like, std::span<const float> weights,
                               IsaSet available = host_isas());

/// The formula above in f32, [out, in].
std::vector<float> dequantize(const QuantizedWeights& weights);

}  // namespace gantry
