#pragma once

#include <cstdint>
#include <span>

namespace gantry {

/// The deterministic part of SparseMixer's top-2 routing (Phi-3.5-MoE), for one token.
///
/// First expert: m = max z at its lowest index; experts with (m - z) / max(|z|, m) > 2 eps are
/// masked; weight = softmax of the rest at that expert. Second: the same over z without the first
/// expert, with the mask computed from the original z.
///
/// @param logits [E]; a NaN is taken for -infinity in selection and makes the weights NaN
/// @param ids, weights two values each, written
/// @source the sparsemixer function of Phi-3.5-MoE, in evaluation mode
void sparsemixer_top2(std::span<const float> logits, float jitter_epsilon, std::span<int32_t> ids,
                      std::span<float> weights) noexcept;

}  // namespace gantry
