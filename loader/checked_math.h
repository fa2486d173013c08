#pragma once

// Arithmetic on numbers that come from a file. Sizes and offsets are int64_t everywhere in the
// loader; what does not fit is refused where it is computed.

#include <cstdint>
#include <optional>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// a * b, or nothing if the product does not fit.
[[nodiscard]] inline std::optional<int64_t> checked_mul(int64_t a, int64_t b) noexcept {
  int64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

/// a + b, or nothing if the sum does not fit.
[[nodiscard]] inline std::optional<int64_t> checked_add(int64_t a, int64_t b) noexcept {
  int64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

}  // namespace gantry
