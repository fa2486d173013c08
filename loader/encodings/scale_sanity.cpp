#include "loader/encodings/scale_sanity.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "loader/encodings/scale_glance.h"
#include "loader/encodings/scale_views.h"

namespace gantry {
namespace {

constexpr float kSmallestExponent = 0x1p-127F;  // e8m0's code 0
constexpr double kMatters = 0x1p-8;             // of the matrix' largest weight

bool has_exponents(DType dtype) { return dtype == DType::kU8 || dtype == DType::kF8E8M0; }

// The elements of one tensor that are wrong in one way.
struct Offenders {
  int64_t first = -1;
  int64_t count = 0;

  void add(size_t element) {
    if (first < 0) first = static_cast<int64_t>(element);
    ++count;
  }
};

void report(FindingKind kind, const Offenders& offenders, const std::string& expected,
            const ScaleView& view, std::vector<ScaleProblem>& problems) {
  if (offenders.count == 0) return;
  const EncodedTensor& tensor = *view.tensor;
  std::string message = fmt::format("{}: element {} of {} {}: expected {}, found {}", tensor.name,
                                    index_text(tensor, offenders.first), shape_text(tensor.shape),
                                    to_string(tensor.dtype), expected,
                                    view.values[static_cast<size_t>(offenders.first)]);
  if (offenders.count > 1) message += fmt::format(", {} in all", offenders.count);
  problems.push_back({kind, view.suffix, offenders.first, std::move(message)});
}

// Values that are zero or tiny are wrong only if there is something under them.
void check_small(const ScaleView& view, std::vector<ScaleProblem>& problems) {
  const std::vector<float> peaks = view.code_peaks();
  const auto magnitude = [&](size_t i) {  // of the block's largest weight
    return std::fabs(static_cast<double>(view.values[i])) * static_cast<double>(peaks[i]);
  };
  double largest = 0.0;
  for (size_t i = 0; i < view.values.size(); ++i) {
    if (std::isfinite(view.values[i])) largest = std::max(largest, magnitude(i));
  }
  const bool exponents = has_exponents(view.tensor->dtype);
  const float limit = well_rounded_from(view.tensor->dtype);
  Offenders zeros;
  Offenders underflows;
  for (size_t i = 0; i < view.values.size(); ++i) {
    const float value = std::fabs(view.values[i]);
    const bool is_zero = value == 0.0F || (exponents && value == kSmallestExponent);
    if (is_zero && (peaks[i] > 0.0F || view.is_divisor)) {
      zeros.add(i);
    } else if (!is_zero && value < limit && peaks[i] > 0.0F && magnitude(i) >= largest * kMatters) {
      underflows.add(i);
    }
  }
  const auto peak_text = [&](const Offenders& offenders) {
    return offenders.count == 0 ? 0.0F : peaks[static_cast<size_t>(offenders.first)];
  };
  report(FindingKind::kZeroScale, zeros,
         view.is_divisor
             ? std::string("a divisor above zero")
             : fmt::format("a scale above zero over codes of up to {}", peak_text(zeros)),
         view, problems);
  report(FindingKind::kUnderflowScale, underflows,
         fmt::format("at least {} over codes of up to {} (below, rounding costs too much)", limit,
                     peak_text(underflows)),
         view, problems);
}

}  // namespace

std::vector<ScaleProblem> check_scales(const ScaleView& view) {
  std::vector<ScaleProblem> problems;
  const float limit = smallest_safe_scale(view.tensor->dtype);
  Offenders non_finite;
  Offenders negative;
  bool any_small = false;
  for (size_t i = 0; i < view.values.size(); ++i) {
    const float value = view.values[i];
    if (!std::isfinite(value)) {
      non_finite.add(i);
    } else if (value < 0.0F && !view.may_be_negative) {
      negative.add(i);
    }
    any_small = any_small || std::fabs(value) < limit;
  }
  report(FindingKind::kNonFinite, non_finite, "a finite number", view, problems);
  report(FindingKind::kNegativeScale, negative, "a positive number", view, problems);
  if (any_small && view.code_peaks) check_small(view, problems);
  return problems;
}

std::vector<ScaleProblem> find_scale_problems(const QuantScheme& scheme,
                                              const EncodedMatrix& matrix) {
  std::vector<ScaleProblem> all;
  if (scales_are_safe(matrix)) return all;
  for (const ScaleView& view : scale_views(scheme, matrix)) {
    std::vector<ScaleProblem> problems = check_scales(view);
    std::move(problems.begin(), problems.end(), std::back_inserter(all));
  }
  return all;
}

}  // namespace gantry
