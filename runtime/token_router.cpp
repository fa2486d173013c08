#include "runtime/token_router.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "runtime/layer_operands.h"
#include "runtime/router.h"

namespace gantry {
namespace {

constexpr int64_t kChunkTokens = 1024;

}  // namespace

RoutedTokens route_tokens(
    MoeModel& model, int layer, int top_k, int64_t num_tokens,
    const std::function<void(int64_t first, int64_t count, std::span<float> rows)>& read,
    std::span<const int32_t> token_ids, const Threads& threads) {
  const MoeLayerSpec& own = *model.config().find_layer(layer);
  GANTRY_CHECK(top_k <= 0 || top_k == own.routing.top_k ||
                   (own.routing.method == RoutingMethod::kTopK && top_k <= own.num_experts),
               ErrorCode::kInvalidArgument, "layer {}: {} experts a token are not possible", layer,
               top_k);
  // As the last of E ranks, which holds one expert.
  const ParallelConfig rank{.tp_size = 1, .ep_size = own.num_experts, .rank = own.num_experts - 1};
  const ExpertMap experts = ExpertMap::create(own.num_experts, own.num_experts, Placement::kLinear);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  LoadOptions load;
  load.threads = threads;
  LoadStats stats;
  const size_t findings = model.report().findings().size();
  MoeLayerWeights weights = loader.load_layer(layer, rank, experts, load, model.report(), stats);
  GANTRY_CHECK(model.report().findings().size() == findings, ErrorCode::kFormat, "layer {}: {}",
               layer, model.report().findings()[findings].message);
  if (top_k > 0) weights.spec.routing.top_k = top_k;
  FusedMoeOptions options;
  options.activations = ActivationDType::kF32;
  options.threads = threads;
  const LayerOperands operands(std::move(weights), experts, options);
  const MoeLayerSpec& spec = operands.weights.spec;

  RoutedTokens routed;
  routed.num_slots = spec.routing.num_slots();
  routed.ids.resize(static_cast<size_t>(num_tokens * routed.num_slots));
  routed.weights.resize(routed.ids.size());
  routed.per_expert.assign(static_cast<size_t>(spec.num_experts), 0);
  const int64_t chunk = std::min(kChunkTokens, num_tokens);
  const auto values = static_cast<size_t>(chunk * spec.hidden_size);
  std::vector<float> rows(values);
  std::vector<float> normalized(spec.router_input_norm ? values : 0);
  std::vector<float> logits(static_cast<size_t>(chunk * spec.routing.num_experts));
  std::vector<float> identity(spec.routing.num_zero_experts > 0 ? static_cast<size_t>(chunk) : 0);
  FusedExpertsScratch scratch(
      linear_scratch(operands.router.layout, operands.router.kernels, chunk));
  TopkScratch topk;
  for (int64_t first = 0; first < num_tokens; first += chunk) {
    const int64_t count = std::min(chunk, num_tokens - first);
    const auto x = std::span(rows).first(static_cast<size_t>(count * spec.hidden_size));
    read(first, count, x);
    const auto z = std::span(logits).first(static_cast<size_t>(count * spec.routing.num_experts));
    router_logits(operands, x, normalized, z, threads, scratch);
    const auto begin = static_cast<size_t>(first * routed.num_slots);
    const auto slots = static_cast<size_t>(count * routed.num_slots);
    topk_routing(spec.routing, routing_tensors(operands.weights), z,
                 token_ids.empty()
                     ? token_ids
                     : token_ids.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                 std::span(routed.ids).subspan(begin, slots),
                 std::span(routed.weights).subspan(begin, slots),
                 std::span(identity).first(identity.empty() ? 0 : static_cast<size_t>(count)),
                 topk);
  }
  for (const int32_t id : routed.ids) {
    if (id >= 0 && id < spec.num_experts) ++routed.per_expert[static_cast<size_t>(id)];
  }
  return routed;
}

}  // namespace gantry
