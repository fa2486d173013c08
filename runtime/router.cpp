#include "runtime/router.h"

#include <algorithm>
#include <cmath>

#include "runtime/rms_norm.h"

namespace gantry {

void router_logits(const LayerOperands& operands, std::span<const float> hidden_states,
                   std::span<float> normalized, std::span<float> logits, const Threads& threads,
                   FusedExpertsScratch& scratch) {
  const MoeLayerSpec& spec = operands.weights.spec;
  if (spec.router_input_norm) {
    // Gemma 4: x / rms(x) * scale / sqrt(H).
    normalized = normalized.first(hidden_states.size());
    std::copy(hidden_states.begin(), hidden_states.end(), normalized.begin());
    const double root = 1.0 / std::sqrt(static_cast<double>(spec.hidden_size));
    rms_norm(operands.weights.router_scale.span(), spec.norm_epsilon, root, normalized);
    hidden_states = normalized;
  }
  linear(hidden_states, operands.router.layout, operands.router.panels.data(), operands.router.bias,
         logits, operands.dense_kernels, threads, scratch);
  if (spec.router_logit_softcap > 0.0F) {
    const float cap = spec.router_logit_softcap;
    for (float& logit : logits)
      logit = std::tanh(logit / cap) * cap;
  }
}

RoutingTensors routing_tensors(const MoeLayerWeights& weights) noexcept {
  return {.correction_bias = weights.correction_bias.span(),
          .per_expert_scale = weights.per_expert_scale.span(),
          .hash_table = weights.hash_table.span()};
}

}  // namespace gantry
