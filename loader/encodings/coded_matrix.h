#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/quant/weight_format.h"
#include "loader/tensor_geometry.h"

namespace gantry GANTRY_API {

/// A quantized matrix W[out, in] in the terms of kernels (WeightFormat), not packed: what each
/// encoding is read into, whatever its own order of bits.
///
///   W[o, i] = (value(codes[o, i]) - zeros[o, g]) * scales[o, g] * output_scales[o]
///
/// with g = i / group, or input_groups[i]; divided by output_divisor where there is one.
struct CodedMatrix {
  WeightFormat format;
  MatrixSize size;
  std::vector<uint8_t> codes{};        ///< [out, in], one a byte; of 4-bit codes the low half
  std::vector<float> scales{};         ///< [out, groups]
  std::vector<int8_t> zeros{};         ///< [out, groups], or empty
  std::vector<float> output_scales{};  ///< [out], or empty
  /// ModelOpt multiplies by a second-level scale, compressed-tensors divides. The quotient is kept
  /// for the exact formula; output_scales hold its rounded inverse.
  float output_divisor = 0.0F;
  std::vector<int32_t> input_groups{};  ///< [in], of matrices with activation order; or empty

  [[nodiscard]] int64_t num_groups() const noexcept {
    return format.grouped() ? (size.in + format.group - 1) / format.group : 0;
  }
};

/// The formula above in f32, row-major: at most one rounding for each factor after the first.
std::vector<float> dequantize(const CodedMatrix& matrix);

/// Index o * in + i of the first element that is NaN or infinite because of its code or scales, or
/// -1.
int64_t find_non_finite(const CodedMatrix& matrix) noexcept;

/// The format of a shard that begins at input `begin`: groups become smaller where the shard cuts
/// one. Not coded (plain) if they would become too small for kernels.
WeightFormat shard_format(const WeightFormat& format, int64_t begin) noexcept;

}  // namespace gantry
