#pragma once

#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "tests/support/mutable_checkpoint.h"

namespace gantry::test {

/// Experts' matrices by layer, expert and part, in f32 [out, in]; kW13 where gate and up share
/// their tensors.
using DecodedWeights = std::map<std::tuple<int, int, Part>, std::vector<float>>;

/// Decodes the experts of a checkpoint in memory with the scheme of its own config. Knows nothing
/// of loading: no plan, slots, ranks or findings.
/// @param intact the model that the checkpoint is a copy of: its names and shapes
/// @return nothing if something is missing or refused
std::optional<DecodedWeights> decode_weights(const MutableCheckpoint& checkpoint,
                                             const TensorMap& tensors,
                                             const MoeModelConfig& intact);

/// Whether two sets of weights hold the same numbers (zeros of either sign, NaN where NaN is).
bool same_weights(const DecodedWeights& a, const DecodedWeights& b);

}  // namespace gantry::test
