#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// A matrix of equal elements somewhere in memory: element (r, c) is at
/// data + (r * row_stride + c * col_stride) * element_bytes.
template <typename Byte>
struct StridedMatrix {
  Byte* data = nullptr;
  int64_t row_stride = 0;  ///< elements
  int64_t col_stride = 0;  ///< elements
};
using StridedSource = StridedMatrix<const std::byte>;
using StridedTarget = StridedMatrix<std::byte>;

/// Copies `rows` x `cols` elements from one layout to another: rows that are whole in both at the
/// speed of memcpy, transposes and every other element of a row in blocks that fit the cache.
///
/// @param element_bytes 1, 2, 4 or 8
/// @param source, target must not overlap
/// @param stream a transpose writes past the caches: for targets too large to be found there later
/// @throws Error kInvalidArgument for another element size or a negative size
void copy_matrix(StridedSource source, StridedTarget target, int64_t rows, int64_t cols,
                 int64_t element_bytes, bool stream = false);

/// Copies two matrices of one size. Where their elements stand in turn on one side (gate and up
/// interleaved) and the other side is its transpose, each cache line is read and written once.
/// Parameters and errors as copy_matrix.
void copy_pair(const StridedSource (&sources)[2], const StridedTarget (&targets)[2], int64_t rows,
               int64_t cols, int64_t element_bytes, bool stream = false);

}  // namespace gantry
