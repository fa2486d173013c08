// Copies between layouts of one matrix. Four cases, from the fastest: both sides are one piece;
// rows are whole in both; rows are whole in neither but run the same way (interleaved gate and
// up); one side is the transpose of the other.

#include "loader/strided_copy.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// 8 x 8 halfwords are transposed in registers: three rounds of interleaving rows that are 4, 2 and
// 1 apart. The compiler's vectors of 16 bytes exist on every machine it builds for.
using Lanes = uint16_t __attribute__((vector_size(16)));

Lanes low_halves(Lanes a, Lanes b) noexcept {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
Lanes high_halves(Lanes a, Lanes b) noexcept {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

/// 8 elements of a row, one behind the other or every second one; nothing behind the last is read.
template <int kColStride>
Lanes load_row(const uint16_t* source) noexcept {
  Lanes low;
  std::memcpy(&low, source, sizeof(Lanes));
  if constexpr (kColStride == 1) return low;
  Lanes high;
  std::memcpy(&high, source + 7, sizeof(Lanes));
  return __builtin_shufflevector(low, high, 0, 2, 4, 6, 9, 11, 13, 15);
}

template <int kColStride>
void transpose_8x8(const uint16_t* source, int64_t source_stride, uint16_t* target,
                   int64_t target_stride) noexcept {
  std::array<Lanes, 8> rows;
  for (size_t r = 0; r < 8; ++r)
    rows[r] = load_row<kColStride>(source + static_cast<int64_t>(r) * source_stride);
  for (int round = 0; round < 3; ++round) {
    std::array<Lanes, 8> next;
    for (size_t r = 0; r < 4; ++r) {
      next[2 * r] = low_halves(rows[r], rows[r + 4]);
      next[2 * r + 1] = high_halves(rows[r], rows[r + 4]);
    }
    rows = next;
  }
  for (size_t r = 0; r < 8; ++r)
    std::memcpy(target + static_cast<int64_t>(r) * target_stride, &rows[r], sizeof(Lanes));
}

/// target[c][r] = source[r][c * kColStride], where the target's rows are dense.
template <int kColStride>
void transpose_halfwords(const uint16_t* source, int64_t source_stride, uint16_t* target,
                         int64_t target_stride, int64_t rows, int64_t cols) noexcept {
  // A block's target rows are whole cache lines of 32 elements; its source rows stay in L1.
  constexpr int64_t kBlock = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    for (int64_t c0 = 0; c0 < cols; c0 += 8) {
      const int64_t r1 = std::min(rows, r0 + kBlock);
      const int64_t c1 = std::min(cols, c0 + 8);
      int64_t r = r0;
      for (; c1 - c0 == 8 && r + 8 <= r1; r += 8) {
        transpose_8x8<kColStride>(source + r * source_stride + c0 * kColStride, source_stride,
                                  target + c0 * target_stride + r, target_stride);
      }
      for (; r < r1; ++r) {
        for (int64_t c = c0; c < c1; ++c)
          target[c * target_stride + r] = source[r * source_stride + c * kColStride];
      }
    }
  }
}

/// Any strides, in blocks of 32 x 32.
template <typename Element>
void copy_blocks(const Element* source, int64_t source_row, int64_t source_col, Element* target,
                 int64_t target_row, int64_t target_col, int64_t rows, int64_t cols) noexcept {
  constexpr int64_t kBlock = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t r1 = std::min(rows, r0 + kBlock);
    for (int64_t c0 = 0; c0 < cols; c0 += kBlock) {
      const int64_t c1 = std::min(cols, c0 + kBlock);
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t c = c0; c < c1; ++c)
          target[r * target_row + c * target_col] = source[r * source_row + c * source_col];
      }
    }
  }
}

/// Rows that run the same way on both sides but skip elements: gate and up interleaved.
template <typename Element>
void copy_skipping(const Element* source, int64_t source_row, int64_t source_col, Element* target,
                   int64_t target_row, int64_t target_col, int64_t rows, int64_t cols) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    const Element* from = source + r * source_row;
    Element* to = target + r * target_row;
    if (target_col == 1 && source_col == 2) {
      for (int64_t c = 0; c < cols; ++c)
        to[c] = from[2 * c];
    } else if (target_col == 2 && source_col == 1) {
      for (int64_t c = 0; c < cols; ++c)
        to[2 * c] = from[c];
    } else {
      for (int64_t c = 0; c < cols; ++c)
        to[c * target_col] = from[c * source_col];
    }
  }
}

template <typename Element>
void copy_elements(StridedSource source, StridedTarget target, int64_t rows,
                   int64_t cols) noexcept {
  const auto* from = reinterpret_cast<const Element*>(source.data);
  auto* to = reinterpret_cast<Element*>(target.data);
  const bool same_direction = source.col_stride <= source.row_stride
                                  ? target.col_stride <= target.row_stride
                                  : target.col_stride > target.row_stride;
  if constexpr (sizeof(Element) == 2) {
    if (source.col_stride == 1 && target.row_stride == 1) {
      return transpose_halfwords<1>(from, source.row_stride, to, target.col_stride, rows, cols);
    }
    if (source.col_stride == 2 && target.row_stride == 1) {
      return transpose_halfwords<2>(from, source.row_stride, to, target.col_stride, rows, cols);
    }
  }
  if (same_direction) {
    copy_skipping(from, source.row_stride, source.col_stride, to, target.row_stride,
                  target.col_stride, rows, cols);
  } else {
    copy_blocks(from, source.row_stride, source.col_stride, to, target.row_stride,
                target.col_stride, rows, cols);
  }
}

}  // namespace

void copy_matrix(StridedSource source, StridedTarget target, int64_t rows, int64_t cols,
                 int64_t element_bytes) {
  GANTRY_CHECK(rows >= 0 && cols >= 0, ErrorCode::kInvalidArgument,
               "copy_matrix: expected sizes >= 0, found {} x {}", rows, cols);
  if (rows == 0 || cols == 0) return;
  // The columns are the direction in which the source is dense.
  if (source.row_stride < source.col_stride || (source.row_stride == 1 && rows > 1 && cols == 1)) {
    std::swap(source.row_stride, source.col_stride);
    std::swap(target.row_stride, target.col_stride);
    std::swap(rows, cols);
  }
  if ((source.col_stride == 1 && target.col_stride == 1) || cols == 1) {
    const bool whole = cols > 1 && source.row_stride == cols && target.row_stride == cols;
    const auto row_bytes = static_cast<size_t>(cols * element_bytes);
    if (whole || rows == 1) {
      std::memcpy(target.data, source.data, static_cast<size_t>(rows) * row_bytes);
      return;
    }
    if (cols > 1) {
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(target.data + r * target.row_stride * element_bytes,
                    source.data + r * source.row_stride * element_bytes, row_bytes);
      }
      return;
    }
  }
  switch (element_bytes) {
    case 1:
      return copy_elements<uint8_t>(source, target, rows, cols);
    case 2:
      return copy_elements<uint16_t>(source, target, rows, cols);
    case 4:
      return copy_elements<uint32_t>(source, target, rows, cols);
    case 8:
      return copy_elements<uint64_t>(source, target, rows, cols);
    default:
      fail(ErrorCode::kInvalidArgument,
           "copy_matrix: expected elements of 1, 2, 4 or 8 bytes, "
           "found {}",
           element_bytes);
  }
}

}  // namespace gantry
