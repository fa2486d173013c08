#pragma once

// Plain data only: files that are compiled for one instruction set include this.

#include <cstdint>

#include "kernels/quant/weight_format.h"

namespace gantry {

/// A row of weights to be turned into codes, a byte each: round(w / step) to nearest, ties to even,
/// saturating; integers plus their group's zero.
struct CodeRow {
  WeightElement element;
  const float* weights;  ///< [n], finite
  int64_t n;
  int64_t group;         ///< of a step; the last group may be shorter
  const float* steps;    ///< [ceil(n / group)], positive
  const uint8_t* zeros;  ///< [ceil(n / group)], of integers; else ignored
  uint8_t* codes;        ///< [n], written
};

/// The smallest and largest weight of each group of a row.
struct RangeRow {
  const float* weights;  ///< [n], finite
  int64_t n;
  int64_t group;
  float* low;   ///< [ceil(n / group)], written
  float* high;  ///< the same
};

/// The passes over rows of weights, for one instruction set. All give the same bits.
struct WeightRowOps {
  void (*ranges)(const RangeRow& call) noexcept;
  void (*codes)(const CodeRow& call) noexcept;
  /// Packs n codes of 4 bits into (n + 1) / 2 bytes, the even one low.
  void (*pack_nibbles)(const uint8_t* codes, int64_t n, uint8_t* packed) noexcept;
};

namespace scalar {
extern const WeightRowOps kWeightRowOps;
}  // namespace scalar
namespace avx512 {
extern const WeightRowOps kWeightRowOps;
}  // namespace avx512

}  // namespace gantry
