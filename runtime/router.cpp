#include "runtime/router.h"

#include <array>
#include <cmath>

#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/topk/topk_routing.h"
#include "runtime/rms_norm.h"

namespace gantry {
void Router::compute_logits(std::span<const float> hidden_states, IsaSet isas,
                            const Threads& threads, Routing& routing) const {
  const MoeLayerSpec& spec = weights_->spec;
  const int64_t num_tokens = static_cast<int64_t>(hidden_states.size()) / spec.hidden_size;
  std::vector<float> normalized;
  if (spec.router_input_norm) {
    // Gemma 4: x / rms(x) * scale / sqrt(H).
    normalized.assign(hidden_states.begin(), hidden_states.end());
    const double root = 1.0 / std::sqrt(static_cast<double>(spec.hidden_size));
    rms_norm(weights_->router_scale.span(), spec.norm_epsilon, root, normalized);
    hidden_states = normalized;
  }
  routing.logits.resize(static_cast<size_t>(num_tokens * spec.routing.num_experts));
  const ExpertWeights operand{
      .data = reinterpret_cast<const std::byte*>(weights_->router.data()),
      .slot_stride_bytes = static_cast<int64_t>(weights_->router.size() * sizeof(float)),
      .num_slots = 1,
      .n = spec.routing.num_experts,
      .k = spec.hidden_size,
      .dtype = DType::kF32,
      .layout = PackedLayout::kRowMajor,
      .bias = weights_->router_bias.size() > 0 ? weights_->router_bias.data() : nullptr,
      .bias_stride_bytes = static_cast<int64_t>(weights_->router_bias.size() * sizeof(float))};
  const std::array<int32_t, 2> offsets = {0, static_cast<int32_t>(num_tokens)};
  grouped_gemm(hidden_states, operand, offsets, routing.logits, isas, threads);
  if (spec.router_logit_softcap > 0.0F) {
    const float cap = spec.router_logit_softcap;
    for (float& logit : routing.logits)
      logit = std::tanh(logit / cap) * cap;
  }
}

void Router::select(int64_t num_tokens, std::span<const int32_t> token_ids,
                    Routing& routing) const {
  const RoutingSpec& spec = weights_->spec.routing;
  const auto slots = static_cast<size_t>(num_tokens * spec.num_slots());
  routing.topk_ids.resize(slots);
  routing.topk_weights.resize(slots);
  routing.identity_weights.resize(spec.num_zero_experts > 0 ? static_cast<size_t>(num_tokens) : 0);
  const RoutingTensors tensors{.correction_bias = weights_->correction_bias.span(),
                               .per_expert_scale = weights_->per_expert_scale.span(),
                               .hash_table = weights_->hash_table.span()};
  topk_routing(spec, tensors, routing.logits, token_ids, routing.topk_ids, routing.topk_weights,
               routing.identity_weights);
}

}  // namespace gantry
