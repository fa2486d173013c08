// Copies between layouts of one matrix. Four cases, from the fastest: both sides are one piece;
// rows are whole in both; one side is the transpose of the other; rows are whole in neither but run
// the same way (interleaved gate and up).

#include "loader/strided_copy.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/transpose/transpose.h"

namespace gantry {
namespace {

/// Runs a transpose if this is one: source rows are dense along the columns, the target's along the
/// rows. Every second element of a source row (gate and up interleaved) counts as dense.
bool run_transpose(StridedSource source, StridedTarget target, int64_t rows, int64_t cols,
                   int64_t element_bytes, bool stream) {
  if (element_bytes > 4 || target.row_stride != 1 || source.col_stride < 1 ||
      source.col_stride > 2) {
    return false;
  }
  TransposeCall call;
  call.rows = rows;
  call.cols = source.col_stride * (cols - 1) + 1;
  call.element_bytes = static_cast<int>(element_bytes);
  call.stream = stream;
  const int64_t source_stride = source.row_stride * element_bytes;
  const int64_t target_stride = target.col_stride * element_bytes;
  call.source = {{source.data, source.data + source_stride}, 2 * source_stride};
  if (source.col_stride == 2) {
    call.target = {{target.data, nullptr}, target_stride};
  } else {
    call.target = {{target.data, target.data + target_stride}, 2 * target_stride};
  }
  transpose(call);
  return true;
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
                 int64_t element_bytes, bool stream) {
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
  if (run_transpose(source, target, rows, cols, element_bytes, stream)) return;
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

void copy_pair(const StridedSource (&sources)[2], const StridedTarget (&targets)[2], int64_t rows,
               int64_t cols, int64_t element_bytes, bool stream) {
  const int64_t source_step = sources[1].data - sources[0].data;
  const int64_t target_step = targets[1].data - targets[0].data;
  const bool alike = sources[0].row_stride == sources[1].row_stride &&
                     sources[0].col_stride == sources[1].col_stride &&
                     targets[0].row_stride == targets[1].row_stride &&
                     targets[0].col_stride == targets[1].col_stride;
  const StridedSource& source = sources[0];
  const StridedTarget& target = targets[0];
  if (!alike || element_bytes > 4 || rows <= 0 || cols <= 0) {
    copy_matrix(sources[0], targets[0], rows, cols, element_bytes, stream);
    return copy_matrix(sources[1], targets[1], rows, cols, element_bytes, stream);
  }
  if (source.col_stride == 2 || target.col_stride == 2) {
    const auto turned = [](const auto& view) {
      auto result = view;
      std::swap(result.row_stride, result.col_stride);
      return result;
    };
    if (source.row_stride != 2 && target.row_stride != 2) {
      return copy_pair({turned(sources[0]), turned(sources[1])},
                       {turned(targets[0]), turned(targets[1])}, cols, rows, element_bytes, stream);
    }
  }
  TransposeCall call;
  call.element_bytes = static_cast<int>(element_bytes);
  call.stream = stream;
  const auto both = [&](auto* data, int64_t stride) {
    return AlternatingRows<std::remove_pointer_t<decltype(data)>>{
        {data, data + stride * element_bytes}, 2 * stride * element_bytes};
  };
  if (source_step == element_bytes && source.row_stride == 2 && target.col_stride == 1) {
    // Columns of the source are rows that belong to one and the other target in turn.
    call.rows = cols;
    call.cols = 2 * rows;
    call.source = both(source.data, source.col_stride);
    call.target = {{targets[0].data, targets[1].data}, target.row_stride * element_bytes};
  } else if (target_step == element_bytes && target.row_stride == 2 && source.col_stride == 1) {
    call.rows = 2 * rows;
    call.cols = cols;
    call.source = {{sources[0].data, sources[1].data}, source.row_stride * element_bytes};
    call.target = both(target.data, target.col_stride);
  } else {
    copy_matrix(sources[0], targets[0], rows, cols, element_bytes, stream);
    return copy_matrix(sources[1], targets[1], rows, cols, element_bytes, stream);
  }
  transpose(call);
}

}  // namespace gantry
