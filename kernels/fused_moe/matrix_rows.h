#pragma once

#include "kernels/grouped_gemm/coded_kernels.h"
#include "kernels/grouped_gemm/packed_layout.h"

namespace gantry {

/// Most rows of one `multiply_panel`: their sums, 16 KB, stay in the L1 or L2 cache. Internal.
inline constexpr int64_t kMaxMultiplyRows = 128;

/// Bytes from row to row of x for a matrix: its columns and what follows them (see PanelGemm).
int64_t row_stride_bytes(const MatrixKernels& kernels, const PackedLayout& layout) noexcept;
/// The same where rows are written as f32 first: rows of int8 then take their place.
int64_t f32_row_stride_bytes(const MatrixKernels& kernels, const PackedLayout& layout) noexcept;

/// The one of the two for rows that are gathered, which go `through_f32` where slots transform
/// them.
int64_t gathered_stride_bytes(const MatrixKernels& kernels, const PackedLayout& layout,
                              bool through_f32) noexcept;

/// Bytes from the start of a row of x to what follows its columns (PanelGemm::x_sums).
int64_t row_tail_offset(const MatrixKernels& kernels, const PackedLayout& layout) noexcept;

/// Writes the group sums behind rows of x (see PanelGemm); nothing for matrices without zero
/// points and minimums.
void sum_groups(const MatrixKernels& kernels, const PackedLayout& layout, std::byte* rows,
                int64_t stride, int64_t num_rows) noexcept;

/// Rows that one `multiply_panel` should get for the caches' sake.
int64_t multiply_rows(const MatrixKernels& kernels) noexcept;

/// C = x * one panel, whatever the matrix' format.
struct MultiplyPanel {
  const MatrixKernels& kernels;
  const PackedLayout& layout;
  const CodedPanel& coded;  ///< layout.coded_panel() of a coded matrix
  const std::byte* x;       ///< as in PanelGemm
  int64_t x_stride;
  int64_t num_rows;     ///< 1 .. kMaxMultiplyRows
  int64_t matrix_rows;  ///< all rows that meet this matrix now: decides how it is multiplied
  const std::byte* panel;
  float* c;               ///< [num_rows, 32], written; 64-byte aligned
  const std::byte* next;  ///< as in PanelGemm
};

void multiply_panel(const MultiplyPanel& call) noexcept;

}  // namespace gantry
