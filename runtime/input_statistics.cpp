#include "runtime/input_statistics.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// Columns of a task; each is the sum over all rows in order, whoever computes it.
constexpr int64_t kTaskColumns = 128;

}  // namespace

size_t InputStatistics::bin_of(float value) noexcept {
  // Exponent and the first bit of the mantissa; 1.0 is 254.
  const auto bits = (std::bit_cast<uint32_t>(value) & 0x7fffffffu) >> 22;
  const int bin = static_cast<int>(bits) - 254 + 128;
  return static_cast<size_t>(std::clamp(bin, 0, static_cast<int>(kNumBins) - 1));
}

void InputStatistics::add(std::span<const float> rows, int64_t count, const Threads& threads) {
  const auto n = static_cast<int64_t>(amax_.size());
  GANTRY_CHECK(static_cast<int64_t>(rows.size()) == count * n, ErrorCode::kInvalidArgument,
               "expected {} x {} values, found {}", count, n, rows.size());
  const int64_t tasks = (n + kTaskColumns - 1) / kTaskColumns;
  std::vector<Histogram> histograms(static_cast<size_t>(tasks));
  parallel_for(threads, tasks, [&](int64_t task) {
    const int64_t begin = task * kTaskColumns;
    const int64_t end = std::min(n, begin + kTaskColumns);
    Histogram& histogram = histograms[static_cast<size_t>(task)];
    histogram.fill(0);
    for (int64_t r = 0; r < count; ++r) {
      const float* row = rows.data() + r * n;
      for (int64_t i = begin; i < end; ++i) {
        const float magnitude = std::abs(row[i]);
        const auto at = static_cast<size_t>(i);
        amax_[at] = std::max(amax_[at], magnitude);
        sum_abs_[at] += magnitude;
        ++histogram[bin_of(magnitude)];
      }
    }
  });
  for (const Histogram& histogram : histograms) {
    for (size_t b = 0; b < kNumBins; ++b)
      histogram_[b] += histogram[b];
  }
  count_ += count;
}

InputStatistics& InputStatistics::operator+=(const InputStatistics& other) {
  GANTRY_CHECK(amax_.size() == other.amax_.size(), ErrorCode::kInvalidArgument,
               "statistics of {} and {} channels", amax_.size(), other.amax_.size());
  for (size_t i = 0; i < amax_.size(); ++i) {
    amax_[i] = std::max(amax_[i], other.amax_[i]);
    sum_abs_[i] += other.sum_abs_[i];
  }
  for (size_t b = 0; b < kNumBins; ++b)
    histogram_[b] += other.histogram_[b];
  count_ += other.count_;
  return *this;
}

float InputStatistics::amax() const noexcept {
  return amax_.empty() ? 0.0F : *std::max_element(amax_.begin(), amax_.end());
}

std::vector<float> InputStatistics::channel_mean_abs() const {
  std::vector<float> mean(sum_abs_.size(), 0.0F);
  if (count_ == 0) return mean;
  for (size_t i = 0; i < mean.size(); ++i)
    mean[i] = static_cast<float>(sum_abs_[i] / static_cast<double>(count_));
  return mean;
}

std::vector<float> InputStatistics::group_amax(int64_t group) const {
  const auto n = static_cast<int64_t>(amax_.size());
  std::vector<float> largest(static_cast<size_t>((n + group - 1) / group), 0.0F);
  for (int64_t i = 0; i < n; ++i) {
    float& value = largest[static_cast<size_t>(i / group)];
    value = std::max(value, amax_[static_cast<size_t>(i)]);
  }
  return largest;
}

}  // namespace gantry
