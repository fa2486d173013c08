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
         logits, operands.router.kernels, threads, scratch);
  if (spec.router_logit_softcap > 0.0F) {
    const float cap = spec.router_logit_softcap;
    for (float& logit : logits)
      logit = std::tanh(logit / cap) * cap;
  }
}

namespace {

// Fewer tokens cost less than to wake a thread: some 2 us each.
constexpr int64_t kTokensPerTask = 16;

struct RouteTokens {
  const MoeLayerWeights& weights;
  std::span<const int32_t> token_ids;
  Routing& routing;
  std::span<TopkScratch> scratch;
  int64_t num_tokens;
  int64_t step;

  void run(int64_t task) const {
    const RoutingSpec& spec = weights.spec.routing;
    const auto begin = static_cast<size_t>(task * step);
    const auto count = static_cast<size_t>(std::min(step, num_tokens - task * step));
    const auto slots = static_cast<size_t>(spec.num_slots());
    const auto experts = static_cast<size_t>(spec.num_experts);
    const std::span<float> identity = routing.identity_weights;
    topk_routing(spec, routing_tensors(weights),
                 std::span<const float>(routing.logits).subspan(begin * experts, count * experts),
                 token_ids.empty() ? token_ids : token_ids.subspan(begin, count),
                 std::span(routing.topk_ids).subspan(begin * slots, count * slots),
                 std::span(routing.topk_weights).subspan(begin * slots, count * slots),
                 identity.empty() ? identity : identity.subspan(begin, count),
                 scratch[static_cast<size_t>(task)]);
  }
};

}  // namespace

void route_tokens(const MoeLayerWeights& weights, std::span<const int32_t> token_ids,
                  Routing& routing, const Threads& threads, std::span<TopkScratch> scratch) {
  const RoutingSpec& spec = weights.spec.routing;
  const auto num_tokens = static_cast<int64_t>(routing.logits.size()) / spec.num_experts;
  int64_t tasks = std::min(static_cast<int64_t>(scratch.size()), num_tokens / kTokensPerTask);
  // A callback sees all tokens; token ids of a wrong number are refused by topk_routing itself.
  const bool splits = spec.method != RoutingMethod::kCustom &&
                      (token_ids.empty() || static_cast<int64_t>(token_ids.size()) == num_tokens);
  if (!splits || tasks < 2) {
    topk_routing(spec, routing_tensors(weights), routing.logits, token_ids, routing.topk_ids,
                 routing.topk_weights, routing.identity_weights, scratch.front());
    return;
  }
  const int64_t step = (num_tokens + tasks - 1) / tasks;
  tasks = (num_tokens + step - 1) / step;
  const RouteTokens all{weights, token_ids, routing, scratch, num_tokens, step};
  parallel_for(threads, tasks, [&all](int64_t task) { all.run(task); });
}

RoutingTensors routing_tensors(const MoeLayerWeights& weights) noexcept {
  return {.correction_bias = weights.correction_bias.span(),
          .per_expert_scale = weights.per_expert_scale.span(),
          .hash_table = weights.hash_table.span()};
}

}  // namespace gantry
