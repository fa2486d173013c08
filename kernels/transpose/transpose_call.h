#pragma once

// Plain data only: this is included by files that are compiled for other instruction sets.

#include <cstddef>
#include <cstdint>

namespace gantry {

/// Rows of dense elements that two matrices hold in turn: row r begins at
/// base[r % 2] + (r / 2) * stride. One matrix of row stride s is {{p, p + s}, 2 * s}; gate and up,
/// where rows of both are interleaved, are {{gate, up}, s}.
template <typename Byte>
struct AlternatingRows {
  Byte* base[2] = {nullptr, nullptr};  ///< aligned to an element
  int64_t stride = 0;                  ///< bytes, not negative
};

/// target[c][r] = source[r][c] for r < rows, c < cols.
struct TransposeCall {
  AlternatingRows<const std::byte> source;  ///< rows of `cols` elements
  /// Columns of the source, rows of `rows` elements; those of a null base are left out. Must not
  /// overlap the source.
  AlternatingRows<std::byte> target;
  int64_t rows = 0;
  int64_t cols = 0;
  int element_bytes = 2;  ///< 1, 2 or 4
  /// Past the caches: for targets too large to be found there later.
  bool stream = false;
};

namespace scalar {
void transpose(const TransposeCall& call) noexcept;
}  // namespace scalar
namespace avx2 {
void transpose(const TransposeCall& call) noexcept;
}  // namespace avx2
namespace avx512 {
void transpose(const TransposeCall& call) noexcept;
}  // namespace avx512

}  // namespace gantry
