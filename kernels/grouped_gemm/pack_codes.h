#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/export.h"
#include "kernels/grouped_gemm/packed_layout.h"

namespace gantry GANTRY_API {

/// Rows of a coded matrix, not packed, `stride` bytes apart, with what belongs to each row and
/// group of the layout. Code (r, c) is byte c of its row (of 4-bit codes the low half counts), or
/// where `nibbles` half of byte c / 2, the low one of even columns.
struct CodedBlock {
  const uint8_t* codes = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  const float* scales = nullptr;  ///< [rows, groups], values that the layout's scale type holds
  const int8_t* zeros = nullptr;  ///< [rows, groups]
  const float* output_scales = nullptr;  ///< [rows]
  bool nibbles = false;                  ///< two 4-bit codes a byte
  uint8_t flip = 0;  ///< XORed to each byte of codes: 0x88 and 0x80 turn codes with an offset of 8
                     ///< and 128 into two's complement
  /// Instead of `scales`: in the layout's scale type, the rows scale_stride bytes apart.
  const std::byte* stored_scales = nullptr;
  int64_t scale_stride = 0;
  const float* minimums = nullptr;        ///< [rows, groups], like scales
  const float* super_scales = nullptr;    ///< [rows, super-groups], values of f16
  const float* super_minimums = nullptr;  ///< the same
};

/// Packs rows row_begin .. row_begin + rows - 1, whole (cols == layout.k), into a coded matrix.
/// Different rows may be packed by several threads at once if no two of them share a 64-byte line:
/// rows of different panels. Padding is not touched (the destination starts as zeros).
/// @return false if a scale or minimum is not a value of the layout's scale type
[[nodiscard]] bool pack_coded_rows(const PackedLayout& layout, const CodedBlock& block,
                                   int64_t row_begin, std::byte* packed) noexcept;

/// The value of a code.
float code_value(WeightElement element, uint8_t code) noexcept;

/// A scale as it is stored.
float load_scale(const std::byte* scales, ScaleType type, int64_t index) noexcept;

/// The scale and the minimum of a lane's group, both levels multiplied. Zero point and minimum of
/// formats that have none are not there to be asked for.
float group_scale(const CodedPanel& panel, const std::byte* data, int64_t lane,
                  int64_t group) noexcept;
float group_minimum(const CodedPanel& panel, const std::byte* data, int64_t lane,
                    int64_t group) noexcept;

/// The weight (lane, k) of a coded panel, without its output scale.
float weight_at(const CodedPanel& panel, const std::byte* data, int64_t lane, int64_t k) noexcept;

/// The code (lane, k) of a coded panel.
uint8_t code_at(const CodedPanel& panel, const std::byte* data, int64_t lane, int64_t k) noexcept;

}  // namespace gantry
