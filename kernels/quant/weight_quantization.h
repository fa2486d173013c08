#pragma once

#include <cstdint>

#include "kernels/base/export.h"
#include "kernels/quant/weight_format.h"

namespace gantry GANTRY_API {

/// How a weight matrix W[out, in] is quantized: what its codes are, and which of them share a
/// scale.
///
/// Codes are bytes, one a weight, whatever a file packs them into: FP8 and FP4 as they are,
/// integers of b bits as q + 2^(b - 1), so that they are never negative.
struct WeightQuantization {
  WeightElement element = WeightElement::kInt4;
  /// How a scale is stored; what is chosen is always a value of that type. kE4M3 has a second scale
  /// for the whole matrix (NVFP4).
  ScaleType scale = ScaleType::kBF16;
  int64_t group = 0;         ///< inputs of one scale; 0: the whole row
  int64_t rows = 1;          ///< outputs of one scale; 0: all of them
  bool zero_points = false;  ///< integers: one beside every scale
  /// The least zero point that the file can hold: 1 in GPTQ's first format, which stores one less.
  uint8_t smallest_zero = 0;
  /// kE4M3: the second scale is stored as what divides (compressed-tensors), not multiplies
  /// (ModelOpt).
  bool divides = false;

  [[nodiscard]] constexpr int64_t num_groups(int64_t in) const noexcept {
    return group > 0 ? (in + group - 1) / group : 1;
  }
  [[nodiscard]] constexpr int64_t num_row_blocks(int64_t out) const noexcept {
    return rows > 0 ? (out + rows - 1) / rows : 1;
  }
  [[nodiscard]] constexpr bool two_levels() const noexcept { return scale == ScaleType::kE4M3; }
  [[nodiscard]] constexpr bool is_integer() const noexcept {
    return element == WeightElement::kInt4 || element == WeightElement::kInt8;
  }
};

/// The smallest and the largest of some weights.
struct WeightRange {
  float low = 0.0F;
  float high = 0.0F;

  [[nodiscard]] float amax() const noexcept { return high > -low ? high : -low; }
};

/// The scale of one group, ready for use: q = round(w / step) + zero, w = (q - zero) * step.
struct GroupScale {
  float stored = 1.0F;  ///< as the file has it, a value of its type; always positive and finite
  float step = 1.0F;    ///< with the second scale
  uint8_t zero = 0;     ///< integers: the code of 0; else 0
};

/// The second scale of a matrix (or of matrices that share one) whose largest magnitude is `amax`:
/// amax / (448 * 6), or its inverse where it divides. Of zeros, that of amax = 1.
/// @source ModelOpt's and compressed-tensors' NVFP4
float second_scale(const WeightQuantization& quantization, float amax) noexcept;

/// The scale of a group that holds weights of this range; it is rounded to the stored type.
///
/// | element, scale      | scale                                                                |
/// |---------------------|----------------------------------------------------------------------|
/// | integers            | amax / (2^b - 1) * 2; the zero point is 2^(b - 1)                    |
/// | with zero points    | (max(high, 0) - min(low, 0)) / (2^b - 1); zero = round(-low / scale) |
/// | - below the least   | max(high, 0) / (2^b - 1 - least); zero = least                       |
/// | e4m3                | amax / 448                                                           |
/// | e4m3, e8m0          | 2^ceil(log2(amax / 448))                                             |
/// | e2m1, e8m0          | 2^(floor(log2(amax rounded)) - 2), as in quantize_row's kMxFp4       |
/// | e2m1, e4m3          | e4m3(amax / (6 * second)), or e4m3(second * (amax / 6)) if it divides |
///
/// Never zero: a group of zeros has 1, and what would round below the type's normal numbers (e4m3:
/// below its smallest) is raised to the smallest of them.
///
/// @param second what second_scale gave; ignored without two levels
/// @throws Error kUnsupported if the scale is larger than its type (or 2^100, for e8m0) can hold
/// @source llm-compressor 0.14 / compressed-tensors 0.19, ModelOpt 0.47 and GPTQModel 7.7 choose
///         the same; their files are compared in tests
GroupScale group_scale(const WeightQuantization& quantization, const WeightRange& range,
                       float second);

/// A stored scale (and zero point) as group_scale would have given it.
GroupScale stored_group_scale(const WeightQuantization& quantization, float stored, uint8_t zero,
                              float second) noexcept;

/// The code of one weight: nearest, ties to even, saturating.
uint8_t weight_code(WeightElement element, float weight, const GroupScale& scale) noexcept;

/// What a code is worth, in f32: (q - zero) * step.
float weight_value(WeightElement element, uint8_t code, const GroupScale& scale) noexcept;

}  // namespace gantry
