#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/export.h"
#include "kernels/grouped_gemm/packed_layout.h"

namespace gantry GANTRY_API {

/// Rows of a coded matrix, not packed: code (r, c) is codes[r * stride + c], one a byte (of 4-bit
/// codes the low half counts), with what belongs to each row and group of the layout.
struct CodedBlock {
  const uint8_t* codes = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  const float* scales = nullptr;  ///< [rows, groups], values that the layout's scale type holds
  const int8_t* zeros = nullptr;  ///< [rows, groups]
  const float* output_scales = nullptr;  ///< [rows]
};

/// Packs rows row_begin .. row_begin + rows - 1, whole (cols == layout.k), into a coded matrix.
/// Different rows may be packed by several threads at once if no two of them share a 64-byte line:
/// rows of different panels. Padding is not touched (the destination starts as zeros).
/// @return false if a scale is not a value of the layout's scale type
[[nodiscard]] bool pack_coded_rows(const PackedLayout& layout, const CodedBlock& block,
                                   int64_t row_begin, std::byte* packed) noexcept;

/// The value of a code.
float code_value(WeightElement element, uint8_t code) noexcept;

/// A scale as it is stored.
float load_scale(const std::byte* scales, ScaleType type, int64_t index) noexcept;

/// The code (lane, k) of a coded panel.
uint8_t code_at(const CodedPanel& panel, const std::byte* data, int64_t lane, int64_t k) noexcept;

}  // namespace gantry
