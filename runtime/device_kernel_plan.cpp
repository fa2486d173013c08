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

// Why rows stay bf16, or empty.
std::string rows8_obstacle(const DeviceWeights& weights, const DeviceKernelPlan& plan) {
  const RowFormat& format = weights.activations.format;
  if (!weights.activations.refusal.empty()) return weights.activations.refusal;
  const bool group = format.kind == RowQuantization::kFp8Group && format.group_size == 128;
  if (!group && format.kind != RowQuantization::kFp8Token) {
    return fmt::format("the scheme is {}, expected fp8 per token or per group of 128",
                       to_string(format.kind));
  }
  if (!takes_rows8(weights.layout.w13) || !takes_rows8(weights.layout.w2)) {
    return "the weights are not e4m3 with channel scales or groups of 128";
  }
  if (plan.prefill == PrefillKernels::kMma) return "e4m3 products need wgmma";
  return "";
}

}  // namespace

DeviceKernelPlan plan_device_kernels(const DeviceWeights& weights,
                                     const DeviceMoeOptions& options) {
  const DeviceAttributes& attributes = weights.device->attributes();
  const DeviceKernels& kernels = weights.device->kernels();
  DeviceKernelPlan plan;
  if (options.batch_invariant) {
    plan.text = "mma.sync, tiles of 32 tokens (batch invariant)";
    return plan;
  }
  std::string why;
  if (options.generic_kernels) {
    why = "by request";
  } else {
    plan.prefill = best_for(kernels, weights.layout);
    if (weights.shared.size() > 0) plan.shared = best_for(kernels, weights.shared_layout);
    if (plan.prefill == PrefillKernels::kMma) {
      why = attributes.compute_capability == 90 ? "this build has no code for sm_90a"
                                                : "wgmma needs sm_90a";
    }
  }
  plan.text = plan.prefill == PrefillKernels::kMma
                  ? fmt::format("mma.sync ({})", why)
                  : fmt::format("mma.sync; from 33 rows an expert wgmma, tiles of {} tokens",
                                plan.prefill == PrefillKernels::kWideWgmma ? "128 or 256" : "128");
  if (!options.quantize_rows || !weights.activations.format.quantizes()) {
    plan.text += "; bf16 rows";
    if (weights.layout.w13.element == DeviceElement::kF16) plan.text += " (f16 for f16 weights)";
    return plan;
  }
  const std::string obstacle = rows8_obstacle(weights, plan);
  if (!obstacle.empty()) {
    plan.text += fmt::format("; bf16 rows: {}", obstacle);
    return plan;
  }
  plan.rows8 = true;
  plan.rows8_whole = weights.activations.format.kind == RowQuantization::kFp8Token;
  plan.rows8_powers_of_two = weights.activations.format.power_of_two_scales;
  plan.text += "; e4m3 x e4m3 with wgmma, bf16 rows below";
  return plan;
}

}  // namespace gantry
