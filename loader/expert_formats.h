#pragma once

// Internal.

#include <string>

#include "kernels/quant/weight_format.h"
#include "loader/checkpoint.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "parallel/parallel_config.h"

namespace gantry {

/// The formats in which a rank's slots can have a layer's quantized experts.
struct ExpertFormats {
  WeightFormat w13;
  WeightFormat w2;
  std::string reason;  ///< why the experts are decoded to f32 instead; empty if they are not
};

/// What the tensors allow: every expert, gate and up in one format, and w2 cut at `intermediate`.
/// Reads the activation orders (g_idx), which decide too.
ExpertFormats expert_formats(const Checkpoint& checkpoint, const MoeLayerSpec& layer,
                             const LayerTensors& tensors, const Slice& intermediate);

}  // namespace gantry
