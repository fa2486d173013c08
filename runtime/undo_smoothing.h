#pragma once

#include <vector>

#include "loader/moe_config.h"
#include "runtime/moe_model.h"

namespace gantry {

/// The weights of the norm in front of a MoE block, B's divided by A's, [H]. Internal.
/// @throws Error kUnsupported if a model has no such norm under a known name
std::vector<float> norm_ratio(const MoeModel& a, const MoeModel& b, const MoeLayerSpec& spec);

/// Takes the scales out of a smoothed model's matrix b that quantization tools fold elsewhere:
/// columns of w1 and w3 are multiplied by the norm's ratio; each row of w3 and column of w2 by the
/// factor that brings it nearest to a's (a matrix that is not a's gains by no more than its own
/// correlation with it).
void undo_smoothing(const std::vector<float>& a, Part part, const std::vector<float>& norm_ratio,
                    std::vector<float>& b);

}  // namespace gantry
