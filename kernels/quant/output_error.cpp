#include "kernels/quant/output_error.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "kernels/base/check.h"

namespace gantry {

namespace {

// A product's 32 lanes with the columns they belong to; four sums, for the pipeline.
float dot(const float* product, const float* x) {
  std::array<float, 4> sums{};
  for (size_t l = 0; l < kPanelWidth; l += sums.size()) {
    for (size_t i = 0; i < sums.size(); ++i)
      sums[i] += product[l + i] * x[l + i];
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

OutputError::OutputError(std::span<const float> hessian, int64_t n, int64_t begin, int64_t count,
                         IsaSet isas)
    : n_(count),
      padded_(padded_depth(count)),
      kernel_(select_panel_gemm(
          {.weights = DType::kF32, .activations = ActivationDType::kF32, .isas = isas})) {
  GANTRY_CHECK(count >= 1 && begin >= 0 && begin + count <= n &&
                   static_cast<int64_t>(hessian.size()) == n * n,
               ErrorCode::kInvalidArgument, "columns {} to {} of a Hessian of {} with {} elements",
               begin, begin + count, n, hessian.size());
  const int64_t num_panels = padded_ / kPanelWidth;
  panels_ = Buffer<float>(static_cast<size_t>(panel_offset(num_panels)));
  for (int64_t panel = 0; panel < num_panels; ++panel) {
    const int64_t first = panel * kPanelWidth;
    const int64_t width = std::min(kPanelWidth, count - first);
    for (int64_t k = first; k < count; ++k) {
      float* to = panels_.data() + panel_offset(panel) + (k - first) * kPanelWidth;
      const float* from = hessian.data() + (begin + k) * n + begin + first;
      const float factor = k < first + kPanelWidth ? 1.0F : 2.0F;
      for (int64_t l = 0; l < width; ++l)
        to[l] = from[l] * factor;
    }
  }
}

void OutputError::rows(std::span<const float> difference, std::span<double> errors) const {
  const auto num_rows = static_cast<int64_t>(errors.size());
  GANTRY_CHECK(static_cast<int64_t>(difference.size()) == num_rows * n_,
               ErrorCode::kInvalidArgument, "expected {} rows of {}, found {} elements", num_rows,
               n_, difference.size());
  const int64_t stride = kernel_.row_stride_bytes(padded_) / 4;
  Buffer<float> x(static_cast<size_t>(kMaxPanelRows * stride));  // zero beyond n
  alignas(64) std::array<float, static_cast<size_t>(kMaxPanelRows * kPanelWidth)> c;
  for (int64_t begin = 0; begin < num_rows; begin += kMaxPanelRows) {
    const int64_t count = std::min(kMaxPanelRows, num_rows - begin);
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(difference.data() + (begin + r) * n_, n_, x.data() + r * stride);
      errors[static_cast<size_t>(begin + r)] = 0.0;
    }
    for (int64_t first = 0; first < padded_; first += kPanelWidth) {
      kernel_.run({.x = reinterpret_cast<const std::byte*>(x.data() + first),
                   .x_stride = stride * 4,
                   .panel = reinterpret_cast<const std::byte*>(panels_.data() +
                                                               panel_offset(first / kPanelWidth)),
                   .k = padded_ - first,
                   .num_rows = count,
                   .c = c.data(),
                   .next = nullptr});
      for (int64_t r = 0; r < count; ++r) {
        const float* product = c.data() + r * kPanelWidth;
        errors[static_cast<size_t>(begin + r)] +=
            static_cast<double>(dot(product, x.data() + r * stride + first));
      }
    }
  }
}

double OutputError::total(std::span<const float> difference) const {
  std::vector<double> errors(difference.size() / static_cast<size_t>(n_));
  rows(difference, errors);
  return std::accumulate(errors.begin(), errors.end(), 0.0);
}

}  // namespace gantry
