#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/base/parallel_for.h"
#include "runtime/moe_model.h"

namespace gantry {

/// The experts that tokens are sent to. Internal.
struct RoutedTokens {
  int num_slots = 0;                ///< ids of a token
  std::vector<int32_t> ids;         ///< [T, num_slots], -1 for none
  std::vector<float> weights;       ///< [T, num_slots]
  std::vector<int64_t> per_expert;  ///< [E] tokens
};

/// Routes tokens with a layer's router alone: one expert is loaded beside it, not all.
/// @param top_k     experts a token instead of the model's own number; 0: its own
/// @param num_tokens, read  rows first .. first + count - 1 of the router's input, [count, H]
/// @param token_ids [T] for hash routing, or empty
/// @throws Error kInvalidArgument for a top_k that the model cannot have
RoutedTokens route_tokens(
    MoeModel& model, int layer, int top_k, int64_t num_tokens,
    const std::function<void(int64_t first, int64_t count, std::span<float> rows)>& read,
    std::span<const int32_t> token_ids, const Threads& threads);

}  // namespace gantry
