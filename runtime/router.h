#pragma once

#include <cstdint>
#include <span>

#include "kernels/base/parallel_for.h"
#include "runtime/layer_operands.h"
#include "runtime/workspace.h"

namespace gantry {

/// Computes router logits: z = W_r x (+ bias), after the input norm and the soft cap where the
/// family has them. Always in f32 and from the unrounded hidden states, whatever the activations of
/// the experts are. Internal.
///
/// @param hidden_states [T, H]
/// @param normalized    [T, H] scratch, where the family normalises the router's input
/// @param logits        [T, routing.num_experts], written
void router_logits(const LayerOperands& operands, std::span<const float> hidden_states,
                   std::span<float> normalized, std::span<float> logits, const Threads& threads,
                   FusedExpertsScratch& scratch);

/// The tensors of the router as the selection reads them.
RoutingTensors routing_tensors(const MoeLayerWeights& weights) noexcept;

/// Selects experts, tokens spread over the threads: what topk_routing computes into `routing`'s
/// ids, weights and identity weights from its logits. One scratch a task.
void route_tokens(const MoeLayerWeights& weights, std::span<const int32_t> token_ids,
                  Routing& routing, const Threads& threads, std::span<TopkScratch> scratch);

}  // namespace gantry
