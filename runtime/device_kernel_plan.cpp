#include "runtime/device_kernel_plan.h"

#include <fmt/format.h>

namespace gantry {
namespace {

PrefillKernels best_for(const DeviceKernels& kernels, const DeviceSlotLayout& layout) {
  const auto has = [&](const DeviceMatrix& matrix) {
    return kernels.gemm[static_cast<size_t>(matrix.element)][kWgmmaGemm] != nullptr;
  };
  if (!has(layout.w13) || !has(layout.w2)) return PrefillKernels::kMma;
  return takes_wide_tiles(layout.w13) && takes_wide_tiles(layout.w2) ? PrefillKernels::kWideWgmma
                                                                     : PrefillKernels::kWgmma;
}

bool both(const DeviceSlotLayout& layout, DeviceElement element) {
  return layout.w13.element == element && layout.w2.element == element;
}

// Why rows stay bf16, or empty.
std::string rows_obstacle(const DeviceWeights& weights) {
  const RowFormat& format = weights.activations.format;
  if (!weights.activations_obstacle.empty()) return weights.activations_obstacle;
  switch (format.kind) {
    case RowQuantization::kFp8Group:
      if (format.group_size != 128) break;
      return both(weights.layout, DeviceElement::kE4M3) ? "" : "the weights are not e4m3";
    case RowQuantization::kFp8Static:
    case RowQuantization::kFp8Token:
    case RowQuantization::kInt8Static:
    case RowQuantization::kInt8Token:
      return weights.layout.w13.element == DeviceElement::kF16 ||
                     weights.layout.w2.element == DeviceElement::kF16
                 ? "f16 weights are multiplied by f16 rows"
                 : "";
    default:
      break;
  }
  return fmt::format(
      "the scheme is {}, expected fp8 static, per token or per group of 128, or int8 static or per "
      "token",
      to_string(format.kind));
}

// Rows of codes: e4m3 on wgmma where weights are e4m3, else as bf16 on the kernels of bf16 rows.
void plan_rows(const DeviceWeights& weights, DeviceKernelPlan& plan) {
  plan.rows = weights.activations.format;
  const bool fp8 = plan.rows.kind != RowQuantization::kInt8Static &&
                   plan.rows.kind != RowQuantization::kInt8Token;
  plan.rows8 = fp8 && plan.prefill != PrefillKernels::kMma && takes_rows8(weights.layout.w13) &&
               takes_rows8(weights.layout.w2);
  const bool groups = plan.rows.kind == RowQuantization::kFp8Group;
  if (plan.rows8) {
    plan.prefill = PrefillKernels::kWgmma;
  } else if (groups) {
    plan.prefill = PrefillKernels::kMma;
  }
  plan.text += fmt::format("; rows {}", to_string(plan.rows.kind));
  if (plan.rows8) {
    plan.text += ": e4m3 x e4m3 with wgmma, codes in bf16 below";
  } else if (groups && plan.prefill == PrefillKernels::kMma) {
    plan.text += ": codes in bf16, mma.sync";
  } else {
    plan.text += ": codes in bf16";
  }
}

}  // namespace

DeviceKernelPlan plan_device_kernels(const DeviceWeights& weights,
                                     const DeviceMoeOptions& options) {
  const DeviceAttributes& attributes = weights.device->attributes();
  const DeviceKernels& kernels = weights.device->kernels();
  DeviceKernelPlan plan;
  std::string why;
  if (options.batch_invariant) {
    why = "batch invariant";
  } else if (options.generic_kernels) {
    why = "by request";
  } else {
    plan.prefill = best_for(kernels, weights.layout);
    if (weights.shared.size() > 0) plan.shared = best_for(kernels, weights.shared_layout);
    if (plan.prefill == PrefillKernels::kMma) {
      why = attributes.compute_capability == 90 ? "this build has no code for sm_90a"
                                                : "wgmma needs sm_90a";
    }
  }
  plan.text = options.batch_invariant ? "mma.sync, tiles of 32 tokens (batch invariant)"
              : plan.prefill == PrefillKernels::kMma
                  ? fmt::format("mma.sync ({})", why)
                  : fmt::format("mma.sync; from 33 rows an expert wgmma, tiles of {} tokens",
                                plan.prefill == PrefillKernels::kWideWgmma ? "128 or 256" : "128");
  if (!options.quantize_rows || !weights.activations.format.quantizes()) {
    plan.text += "; bf16 rows";
    if (weights.layout.w13.element == DeviceElement::kF16) plan.text += " (f16 for f16 weights)";
    return plan;
  }
  const std::string obstacle = rows_obstacle(weights);
  if (!obstacle.empty()) {
    plan.text += fmt::format("; bf16 rows: {}", obstacle);
    return plan;
  }
  plan_rows(weights, plan);
  return plan;
}

}  // namespace gantry
