#pragma once

// Plain data only, as in panel_gemm.h.

#include <cstddef>
#include <cstdint>

namespace gantry {

/// Copies `num_rows` (1 .. 16) contiguous rows of bf16 into one half of a panel, a pair of k at a
/// time: target[pair * 128 + row * 4] = 4 bytes at source[row * row_stride + pair * 4].
struct PackPairs {
  const std::byte* source;
  int64_t row_stride;  ///< bytes
  int64_t num_rows;
  int64_t num_pairs;
  std::byte* target;
};

namespace scalar {
void pack_pairs(const PackPairs& call) noexcept;
}  // namespace scalar
namespace avx512 {
void pack_pairs(const PackPairs& call) noexcept;
}  // namespace avx512

}  // namespace gantry
