#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"

namespace gantry GANTRY_API {

/// What calibration collects of a linear layer's input x [n]: largest and mean magnitudes of its
/// channels, and how magnitudes are spread.
class InputStatistics {
 public:
  static constexpr size_t kNumBins = 256;
  using Histogram = std::array<int64_t, kNumBins>;

  explicit InputStatistics(int64_t n = 0)
      : amax_(static_cast<size_t>(n), 0.0F), sum_abs_(static_cast<size_t>(n), 0.0) {}

  /// Adds rows [count, n], finite. The result does not depend on the number of threads.
  void add(std::span<const float> rows, int64_t count, const Threads& threads);
  InputStatistics& operator+=(const InputStatistics& other);

  [[nodiscard]] int64_t count() const noexcept { return count_; }
  /// 0 without rows.
  [[nodiscard]] float amax() const noexcept;
  [[nodiscard]] std::span<const float> channel_amax() const noexcept { return amax_; }
  /// [n]; 0 without rows.
  [[nodiscard]] std::vector<float> channel_mean_abs() const;
  /// [ceil(n / group)] over the channels of each group.
  [[nodiscard]] std::vector<float> group_amax(int64_t group) const;
  [[nodiscard]] const Histogram& histogram() const noexcept { return histogram_; }

  /// Bin b holds magnitudes from low(b) on, two bins an octave: 128 + 2 floor(log2 x), and one more
  /// from 1.5 times a power of two on. Bin 0 also holds what is smaller, and zeros; 255 what is
  /// larger.
  [[nodiscard]] static size_t bin_of(float value) noexcept;

 private:
  int64_t count_ = 0;
  std::vector<float> amax_;
  std::vector<double> sum_abs_;
  Histogram histogram_{};
};

}  // namespace gantry
