#pragma once

// Scales that cannot be right, whatever the encoding. Internal.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "loader/encodings/encoded_matrix.h"
#include "loader/load_report.h"

namespace gantry {

/// One tensor of scales, and how large the codes under each are.
struct ScaleView {
  std::string suffix;                     ///< of the tensor in its EncodedMatrix
  const EncodedTensor* tensor = nullptr;  ///< name, dtype and shape
  std::vector<float> values;              ///< [n], as stored
  bool may_be_negative = false;           ///< integers: with their zero point, either sign is legal
  bool is_divisor = false;                ///< the codes are divided by it
  /// [n]: the largest |code - zero point| that each scale covers. Only asked for where a value is
  /// zero or tiny; empty where the values are not factors (a code book).
  std::function<std::vector<float>()> code_peaks;
};

/// What is wrong with a tensor: at most one a kind.
struct ScaleProblem {
  FindingKind kind = FindingKind::kNonFinite;
  std::string suffix;
  int64_t element = -1;  ///< the first one, row-major
  std::string message;   ///< tensor, index, expected, found, and how many are like it
};

/// - kNonFinite: NaN or infinity.
/// - kNegativeScale: below zero where the format has no such scales.
/// - kZeroScale: zero over a block in which some code is not zero (not the zero point), an e8m0
///   exponent of 0 over such codes (a buffer that was never written: no weight needs 2^-127), or a
///   divisor of zero. Zero over zeros is how many exporters write an empty block.
/// - kUnderflowScale: the scale is so small for its dtype that rounding it cost more than 2^-4,
///   what e4m3 loses at worst among its normal numbers: below 2^-6 in e4m3, below 8 of the
///   subnormal steps in f16, bf16 and f32. It matters only if the block does: the block's largest
///   weight |scale| * |code| must be at least 2^-8 of the matrix' largest, otherwise the error is
///   below what rounding that one to bf16 costs. A matrix whose global scale fits its weights has
///   its largest e4m3 scale near 448, and then no subnormal one reaches 2^-8 of it; a global scale
///   that was never calibrated pushes all of them down there.
std::vector<ScaleProblem> check_scales(const ScaleView& view);

/// All tensors of scales of a matrix that was decoded without an error.
std::vector<ScaleProblem> find_scale_problems(const QuantScheme& scheme,
                                              const EncodedMatrix& matrix);

}  // namespace gantry
