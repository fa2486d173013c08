#include "kernels/activation/activation.h"

#include <algorithm>
#include <cmath>

#include "kernels/activation/activation_math.h"
#include "kernels/base/check.h"

// One small function a kind (activation_math.h), applied by one loop.

namespace gantry {
namespace {

using namespace activation_math;

// Where the operands of one call stand.
struct Rows {
  int64_t num_rows;
  int64_t n;
  const float* gate;
  int64_t gate_stride;
  const float* up;
  int64_t up_stride;
  float* out;
  int64_t out_stride;
};

template <typename Function>
void for_each(const Rows& rows, Function function) {
  for (int64_t r = 0; r < rows.num_rows; ++r) {
    const float* a = rows.gate + r * rows.gate_stride;
    const float* u = rows.up == nullptr ? a : rows.up + r * rows.up_stride;
    float* out = rows.out + r * rows.out_stride;
    for (int64_t i = 0; i < rows.n; ++i)
      out[i] = function(a[i], u[i]);
  }
}

}  // namespace

std::string_view to_string(Activation activation) noexcept {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_tanh";
    case Activation::kSwigluOai:
      return "swigluoai";
    case Activation::kSwigluStep:
      return "swiglustep";
    case Activation::kSitu:
      return "situ";
    case Activation::kRelu2:
      return "relu2";
    case Activation::kSiluNoMul:
      return "silu_no_mul";
    case Activation::kGeluNoMul:
      return "gelu_no_mul";
    case Activation::kGeluTanhNoMul:
      return "gelu_tanh_no_mul";
    case Activation::kRelu2NoMul:
      return "relu2_no_mul";
  }
  return "unknown";
}

bool is_gated(Activation activation) noexcept {
  switch (activation) {
    case Activation::kSiluNoMul:
    case Activation::kGeluNoMul:
    case Activation::kGeluTanhNoMul:
    case Activation::kRelu2NoMul:
      return false;
    default:
      return true;
  }
}

void validate(const ActivationSpec& spec) {
  const auto check = [&](bool ok, std::string_view what, float found) {
    GANTRY_CHECK(ok, ErrorCode::kInvalidArgument, "activation {}: {}, found {}",
                 to_string(spec.kind), what, found);
  };
  check(std::isfinite(spec.limit) && spec.limit >= 0.0F, "limit: expected at least 0", spec.limit);
  const bool needs_limit =
      spec.kind == Activation::kSwigluOai || spec.kind == Activation::kSwigluStep;
  check(!needs_limit || spec.limit > 0.0F, "limit: expected more than 0", spec.limit);
  check(std::isfinite(spec.alpha), "alpha: expected a finite number", spec.alpha);
  check(std::isfinite(spec.beta), "beta: expected a finite number", spec.beta);
  check(spec.kind != Activation::kSitu || spec.beta > 0.0F, "beta: expected more than 0",
        spec.beta);
  check(std::isfinite(spec.linear_beta) && spec.linear_beta >= 0.0F,
        "linear_beta: expected at least 0", spec.linear_beta);
}

void apply_activation(const ActivationSpec& spec, int64_t num_rows, int64_t n, const float* gate,
                      int64_t gate_stride, const float* up, int64_t up_stride, float* out,
                      int64_t out_stride) noexcept {
  const Rows rows{num_rows,  n,   gate,      gate_stride, is_gated(spec.kind) ? up : nullptr,
                  up_stride, out, out_stride};
  switch (spec.kind) {
    case Activation::kSilu:
      return for_each(rows, [&](float a, float u) { return clamped_silu(spec, a, u); });
    case Activation::kGelu:
      return for_each(rows, [](float a, float u) { return gelu(a) * u; });
    case Activation::kGeluTanh:
      return for_each(rows, [](float a, float u) { return gelu_tanh(a) * u; });
    case Activation::kSwigluOai:
      return for_each(rows, [&](float a, float u) { return swiglu_oai(spec, a, u); });
    case Activation::kSwigluStep:
      return for_each(rows, [&](float a, float u) { return swiglu_step(spec, a, u); });
    case Activation::kSitu:
      return for_each(rows, [&](float a, float u) { return situ(spec, a, u); });
    case Activation::kRelu2:
      return for_each(rows, [](float a, float u) { return relu2(a) * u; });
    case Activation::kSiluNoMul:
      return for_each(rows, [](float a, float) { return silu(a); });
    case Activation::kGeluNoMul:
      return for_each(rows, [](float a, float) { return gelu(a); });
    case Activation::kGeluTanhNoMul:
      return for_each(rows, [](float a, float) { return gelu_tanh(a); });
    case Activation::kRelu2NoMul:
      return for_each(rows, [](float a, float) { return relu2(a); });
  }
}

}  // namespace gantry
