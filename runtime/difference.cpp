#include "runtime/difference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"

namespace gantry {

void Difference::add(std::span<const float> a, std::span<const float> b) {
  GANTRY_CHECK(a.size() == b.size(), ErrorCode::kInvalidArgument,
               "expected arrays of equal length, found {} and {}", a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = a[i];
    const double y = b[i];
    aa += x * x;
    bb += y * y;
    ab += x * y;
    dd += (y - x) * (y - x);
    max_abs = std::max(max_abs, std::abs(y - x));
  }
  count += static_cast<int64_t>(a.size());
}

Difference& Difference::operator+=(const Difference& other) noexcept {
  count += other.count;
  aa += other.aa;
  bb += other.bb;
  ab += other.ab;
  dd += other.dd;
  max_abs = std::max(max_abs, other.max_abs);
  return *this;
}

double Difference::relative() const noexcept {
  if (!std::isfinite(dd)) return std::numeric_limits<double>::infinity();
  if (aa == 0.0) return dd == 0.0 ? 0.0 : std::numeric_limits<double>::infinity();
  return std::sqrt(dd / aa);
}

double Difference::snr_db() const noexcept { return -20.0 * std::log10(relative()); }

double Difference::cosine() const noexcept {
  const double norms = std::sqrt(aa) * std::sqrt(bb);
  return norms > 0.0 && std::isfinite(norms) ? ab / norms : 0.0;
}

}  // namespace gantry
