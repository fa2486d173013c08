#pragma once

#include <span>

#include "loader/moe_config.h"
#include "runtime/fused_moe_layer.h"

namespace gantry {

/// Checks that a batch in host memory has the sizes of a layer. Internal.
/// @throws Error kInvalidArgument naming what does not fit
void check_input(const MoeLayerSpec& spec, const MoeInput& input, std::span<const float> out);

}  // namespace gantry
