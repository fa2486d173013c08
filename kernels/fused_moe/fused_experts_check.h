#pragma once

#include "kernels/fused_moe/fused_experts.h"

namespace gantry {

/// Sizes, ids and scratch of a call against its experts.
/// @throws Error kInvalidArgument with what was expected and found
void check_call(const FusedExpertsCall& call, const FusedExpertsScratch& scratch,
                const FusedExpertsScratchSize& needed);

}  // namespace gantry
