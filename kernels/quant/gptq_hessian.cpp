#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/quant/cholesky_inverse.h"
#include "kernels/quant/gptq.h"

// U with U^T U = A^-1 without an inverse in between: with J the reversal of rows,
// J A J = L L^T, so A^-1 = (J L^-1 J)^T (J L^-1 J), and J L^-1 J is upper triangular.

namespace gantry {
namespace {

// Rows of A apart: not a multiple of 4 KB, where all rows of a block would fall into one set of the
// L1 cache.
int64_t row_stride(int64_t n) { return n % 1024 == 0 ? n + 16 : n; }

}  // namespace

GptqHessian::GptqHessian(std::span<const float> hessian, int64_t n, const GptqSettings& settings,
                         const Threads& threads, IsaSet isas)
    : n_(n), padded_(padded_depth(n)), damping_(settings.damping) {
  GANTRY_CHECK(n >= 1 && static_cast<int64_t>(hessian.size()) == n * n, ErrorCode::kInvalidArgument,
               "GPTQ: a Hessian of {} columns has {} elements, found {}", n, n * n, hessian.size());
  GANTRY_CHECK(settings.damping > 0.0 && settings.damping <= 1.0, ErrorCode::kInvalidArgument,
               "GPTQ: expected damping above 0 and at most 1, found {}", settings.damping);
  const auto diagonal = [&](int64_t i) { return hessian[static_cast<size_t>(i * n + i)]; };
  for (size_t i = 0; i < hessian.size(); ++i) {
    GANTRY_CHECK(std::isfinite(hessian[i]), ErrorCode::kInvalidArgument,
                 "GPTQ: element [{}, {}] of the Hessian is {}", i / static_cast<size_t>(n),
                 i % static_cast<size_t>(n), hessian[i]);
  }
  for (int64_t i = 0; i < n; ++i) {
    GANTRY_CHECK(diagonal(i) >= 0.0F, ErrorCode::kInvalidArgument,
                 "GPTQ: element [{}, {}] of the Hessian's diagonal is {}", i, i, diagonal(i));
    if (diagonal(i) == 0.0F) ++num_dead_;
  }
  order_.resize(static_cast<size_t>(n));
  std::iota(order_.begin(), order_.end(), 0);
  if (settings.order == GptqOrder::kByActivation) {
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return diagonal(a) > diagonal(b); });
    in_order_ = std::is_sorted(order_.begin(), order_.end());
  }
  const int64_t num_panels = padded_ / kPanelWidth;
  panels_ = Buffer<float>(static_cast<size_t>(panel_offset(num_panels)));
  triangles_ = Buffer<float>(static_cast<size_t>(padded_ * kPanelWidth));
  while (!factorize(hessian, threads, isas)) {
    GANTRY_CHECK(damping_ < 1.0, ErrorCode::kInvalidArgument,
                 "GPTQ: the Hessian is not positive definite, even with its mean diagonal added");
    const double raised = std::min(1.0, damping_ * 10.0);
    log(LogLevel::kWarn,
        "GPTQ: the Hessian of {} columns is not positive definite with damping {}: raised to {}", n,
        damping_, raised);
    damping_ = raised;
  }
}

bool GptqHessian::factorize(std::span<const float> hessian, const Threads& threads, IsaSet isas) {
  double sum = 0.0;
  for (int64_t i = 0; i < n_; ++i)
    sum += hessian[static_cast<size_t>(i * n_ + i)];
  const int64_t num_live = n_ - num_dead_;
  const double mean = num_live > 0 ? sum / static_cast<double>(num_live) : 1.0;
  const auto added = static_cast<float>(mean * damping_);
  const int64_t stride = row_stride(padded_);
  Buffer<float> a(static_cast<size_t>(padded_ * stride));
  // Row and column r of A is place padded - 1 - r of the order; padding comes first and is I.
  parallel_for(threads, padded_, [&](int64_t r) {
    float* row = a.data() + r * stride;
    const int64_t place = padded_ - 1 - r;
    if (place >= n_) {
      row[r] = 1.0F;
      return;
    }
    const int64_t i = order_[static_cast<size_t>(place)];
    for (int64_t c = padded_ - n_; c <= r; ++c) {
      const int64_t j = order_[static_cast<size_t>(padded_ - 1 - c)];
      row[c] = hessian[static_cast<size_t>(i * n_ + j)];
    }
    // A dead column meets no other: whatever stands on its diagonal, it is rounded to nearest.
    row[r] = row[r] == 0.0F ? static_cast<float>(mean) : row[r] + added;
  });
  Buffer<float> inverse(static_cast<size_t>(padded_ * padded_));
  if (!cholesky_inverse(a.data(), padded_, stride, inverse.data(), threads, isas)) return false;
  const int64_t num_panels = padded_ / kPanelWidth;
  parallel_for(threads, num_panels, [&](int64_t panel) {
    const float* reversed = inverse.data() + (num_panels - 1 - panel) * padded_ * kPanelWidth;
    const int64_t first = panel * kPanelWidth;
    for (int64_t k = 0; k < first + kPanelWidth; ++k) {
      float* to = k < first ? panels_.data() + panel_offset(panel) + k * kPanelWidth
                            : triangles_.data() + k * kPanelWidth;
      const float* from = reversed + (padded_ - 1 - k) * kPanelWidth;
      for (int64_t l = 0; l < kPanelWidth; ++l)
        to[l] = first + l < k ? 0.0F : from[kPanelWidth - 1 - l];
    }
  });
  return true;
}

float GptqHessian::factor(int64_t i, int64_t j) const noexcept {
  const int64_t panel = j / kPanelWidth;
  const int64_t lane = j % kPanelWidth;
  if (i / kPanelWidth == panel) return triangles_[static_cast<size_t>(i * kPanelWidth + lane)];
  return panels_[static_cast<size_t>(panel_offset(panel) + i * kPanelWidth + lane)];
}

}  // namespace gantry
