#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/topk/topk_routing.h"

namespace gantry::test {

/// What `topk_routing` wrote.
struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  std::vector<float> identity;
};

/// Calls `topk_routing` with outputs of the right size, filled with what it must overwrite.
inline Routed run_routing(const RoutingSpec& spec, const RoutingTensors& tensors,
                          std::span<const float> logits, std::span<const int32_t> token_ids = {}) {
  const size_t num_tokens = logits.size() / static_cast<size_t>(spec.num_experts);
  const size_t num_values = num_tokens * static_cast<size_t>(spec.num_slots());
  Routed routed{.ids = std::vector<int32_t>(num_values, -77),
                .weights = std::vector<float>(num_values, -77.0F),
                .identity = std::vector<float>(spec.num_zero_experts > 0 ? num_tokens : 0, -77.0F)};
  TopkScratch scratch;
  topk_routing(spec, tensors, logits, token_ids, routed.ids, routed.weights, routed.identity,
               scratch);
  return routed;
}

}  // namespace gantry::test
