#pragma once

#include "runtime/moe_model.h"

namespace gantry {

/// The forward calls of one rank of run_layer_on_ranks on a GPU. Collective over `world`. Internal.
/// @param options what a GPU does not do is an error that says why
/// @param max_tokens of a batch of any rank
void run_layer_on_device(const MoeLayerWeights& weights, const ExpertMap& experts,
                         const FusedMoeOptions& options, const MoeInput& input, int64_t max_tokens,
                         int repeat, const RankSetup& ranks, Communicator& world,
                         RankResult& result);

}  // namespace gantry
