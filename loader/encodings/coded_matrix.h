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
///   W[o, i] = ((value(codes[o, i]) - zeros[o, g]) * scales[o, g] - minimums[o, g])
///             * output_scales[o]
///
/// with g = i / group, or input_groups[i]; divided by output_divisor where there is one. With two
/// levels scales and minimums are integers, times those of the group's super-group.
///
/// What stands in the file as it is wanted here is not copied: `file_codes` and `file_scales` point
/// to the tensors that the matrix was read from, and live no longer than they.
struct CodedMatrix {
  WeightFormat format;
  MatrixSize size;
  /// Rows of codes, row_bytes() apart, one a byte; of 4-bit codes two, the even input low.
  std::vector<uint8_t> codes{};
  const uint8_t* file_codes = nullptr;  ///< instead of `codes`
  int64_t padded_row_bytes = 0;         ///< where rows are further apart than they need
  uint8_t flip = 0;  ///< XORed to each byte of codes, as in CodedBlock: 0x80, 0x88 take off 128, 8
  std::vector<float> scales{};             ///< [out, groups]
  const std::byte* file_scales = nullptr;  ///< instead of `scales`, in the format's scale type
  std::vector<int8_t> zeros{};             ///< [out, groups], or empty
  std::vector<float> minimums{};           ///< [out, groups], or empty
  std::vector<float> super_scales{};       ///< [out, super-groups], or empty
  std::vector<float> super_minimums{};     ///< the same
  std::vector<float> output_scales{};      ///< [out], or empty
  /// ModelOpt multiplies by a second-level scale, compressed-tensors divides. The quotient is kept
  /// for the exact formula; output_scales hold its rounded inverse.
  float output_divisor = 0.0F;
  std::vector<int32_t> input_groups{};  ///< [in], of matrices with activation order; or empty

  [[nodiscard]] int64_t num_groups() const noexcept {
    return format.grouped() ? (size.in + format.group - 1) / format.group : 0;
  }
  [[nodiscard]] int64_t num_supers() const noexcept {
    return format.super_group > 0 ? (size.in + format.super_group - 1) / format.super_group : 0;
  }
  [[nodiscard]] bool nibbles() const noexcept { return bits_of(format.element) == 4; }
  [[nodiscard]] int64_t row_bytes() const noexcept {
    if (padded_row_bytes > 0) return padded_row_bytes;
    return nibbles() ? (size.in + 1) / 2 : size.in;
  }
  /// Memory for all rows.
  void own_codes(int64_t bytes_a_row) {
    padded_row_bytes = bytes_a_row;
    codes.resize(static_cast<size_t>(size.out * bytes_a_row));
  }
  [[nodiscard]] const uint8_t* code_row(int64_t out) const noexcept {
    return (file_codes != nullptr ? file_codes : codes.data()) + out * row_bytes();
  }
  [[nodiscard]] uint8_t code(int64_t out, int64_t in) const noexcept {
    const uint8_t* row = code_row(out);
    if (!nibbles()) return row[in] ^ flip;
    return static_cast<uint8_t>((row[in / 2] ^ flip) >> (in % 2 * 4) & 0xf);
  }
  /// The scale of group `at` = out * num_groups() + group.
  [[nodiscard]] float scale(int64_t at) const noexcept;
};

/// The formula above in f32, row-major: at most one rounding for each factor after the first.
std::vector<float> dequantize(const CodedMatrix& matrix);

/// Index o * in + i of the first element that is NaN or infinite because of its code or scales, or
/// -1.
int64_t find_non_finite(const CodedMatrix& matrix) noexcept;

/// The format of a shard that begins at input `begin`: groups become smaller where the shard cuts
/// one. Not coded (plain) if they would not be multiples of 8, the least step of kernels.
WeightFormat shard_format(const WeightFormat& format, int64_t begin) noexcept;

}  // namespace gantry
