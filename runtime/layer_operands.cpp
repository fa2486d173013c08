#include "runtime/layer_operands.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"

namespace gantry {
namespace {

DenseOperand pack_dense(const Buffer<float>& matrix, const Buffer<float>& bias, int64_t n,
                        int64_t k) {
  DenseOperand operand;
  if (matrix.size() == 0) return operand;
  operand.layout = {DType::kF32, /*gated=*/false, n, k};
  operand.panels = ByteBuffer(static_cast<size_t>(operand.layout.bytes()));
  pack_matrix(operand.layout, matrix.data(), operand.panels.data());
  operand.bias = bias.size() > 0 ? bias.data() : nullptr;
  return operand;
}

FusedExpertsKernels select(const SlotLayout& layout, const FusedMoeOptions& options, int layer,
                           std::string_view what) {
  const KernelRequest request{.weights = layout.dtype,
                              .activations = options.activations,
                              .isas = options.isas,
                              .avx512_dot = options.avx512_dot,
                              .batch_invariant = options.batch_invariant};
  const FusedExpertsKernels kernels =
      select_fused_experts(request, layout.w13_panels.format, layout.w2_panels.format);
  log(LogLevel::kDebug, "layer {}: {}: {} weights: {}; w2 {}: {} ({})", layer, what,
      to_string(layout.w13_panels), to_string(kernels.w13), to_string(layout.w2_panels),
      to_string(kernels.w2), fmt::join(refused_panel_gemms(request), "; "));
  return kernels;
}

}  // namespace

LayerOperands::LayerOperands(MoeLayerWeights loaded, const ExpertMap& experts,
                             const FusedMoeOptions& options)
    : weights(std::move(loaded)) {
  const MoeLayerSpec& spec = weights.spec;
  const int ep_rank = weights.parallel.ep_rank();
  routed = weights.layout.experts(weights.slots.data(), weights.num_slots);
  routed_kernels = select(weights.layout, options, spec.layer, "experts");
  if (weights.shared.size() > 0) {
    shared = weights.shared_layout.experts(weights.shared.data(), 1);
    shared_kernels = select(weights.shared_layout, options, spec.layer, "shared experts");
  }
  FusedMoeOptions dense = options;
  dense.activations = ActivationDType::kF32;
  SlotLayout dense_layout;
  dense_layout.dtype = DType::kF32;
  dense_kernels = select(dense_layout, dense, spec.layer, "router");
  router =
      pack_dense(weights.router, weights.router_bias, spec.routing.num_experts, spec.hidden_size);
  latent_in = pack_dense(weights.latent_in, weights.latent_in_bias, spec.expert_hidden_size,
                         spec.hidden_size);
  latent_out = pack_dense(weights.latent_out, weights.latent_out_bias, spec.hidden_size,
                          spec.expert_hidden_size);

  logical_to_slot = experts.computed_slots(ep_rank);
  for (int p = 0; p < experts.num_physical(); ++p) {
    physical_to_slot.push_back(experts.owner(p) == ep_rank ? experts.slot(p) : -1);
    physical_to_logical.push_back(experts.logical(p));
  }
  const auto logical = experts.slot_to_logical(ep_rank);
  slot_order.resize(logical.size());
  std::iota(slot_order.begin(), slot_order.end(), 0);
  std::stable_sort(slot_order.begin(), slot_order.end(), [&](int32_t a, int32_t b) {
    return logical[static_cast<size_t>(a)] < logical[static_cast<size_t>(b)];
  });
}

}  // namespace gantry
