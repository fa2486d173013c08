#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// How an array b differs from an array a: sums that can be taken piece by piece, in f64.
struct Difference {
  int64_t count = 0;
  double aa = 0.0;       ///< sum a^2
  double bb = 0.0;       ///< sum b^2
  double ab = 0.0;       ///< sum a b
  double dd = 0.0;       ///< sum (b - a)^2
  double max_abs = 0.0;  ///< largest |b - a|

  /// Adds two pieces of equal length.
  void add(std::span<const float> a, std::span<const float> b);
  Difference& operator+=(const Difference& other) noexcept;

  [[nodiscard]] bool equal() const noexcept { return dd == 0.0; }
  /// ||b - a|| / ||a||; infinity where b is not finite, or differs from an a of zeros.
  [[nodiscard]] double relative() const noexcept;
  /// Signal-to-noise ratio, 20 log10(||a|| / ||b - a||) in dB; infinity where they are equal.
  [[nodiscard]] double snr_db() const noexcept;
  /// <a, b> / (||a|| ||b||): about 0 for weights that have nothing to do with each other.
  [[nodiscard]] double cosine() const noexcept;
  /// The factor f for which f a is nearest to b.
  [[nodiscard]] double factor() const noexcept { return aa > 0.0 ? ab / aa : 0.0; }
};

}  // namespace gantry
