#pragma once

// Internal.

#include <memory>
#include <string>

#include "kernels/quant/weight_format.h"
#include "loader/checkpoint.h"
#include "loader/family_spec.h"
#include "loader/input_transforms.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "parallel/parallel_config.h"

namespace gantry {

/// The formats in which a rank's slots can have a layer's quantized experts.
struct ExpertFormats {
  WeightFormat w13;
  WeightFormat w2;        ///< of this rank's shard
  WeightFormat whole_w2;  ///< before it is cut
  int64_t cut_unit = 1;   ///< of the intermediate size, see MoeLayerWeights; also with a reason
  std::shared_ptr<const LayerTransforms> transforms;  ///< of routed experts; null with a reason
  std::string reason;  ///< why the experts are decoded to f32 instead; empty if they are not
};

/// Whose slots are asked for.
struct FormatRequest {
  ParallelConfig parallel;
  /// Only formats that the GPU's kernels read, with inputs as they are.
  bool gpu = false;
};

/// What the tensors allow: every expert, gate and up in one format, that of all or the smallest
/// that holds them exactly (common_format.h); and w2 cut for tensor parallel ranks. Reads
/// activation orders (g_idx) and pre_quant_scales, which decide too. Every rank comes to the same
/// answer but for w2's groups, which its shard may cut.
ExpertFormats expert_formats(const Checkpoint& checkpoint, const FamilySpec& family,
                             const MoeLayerSpec& layer, const LayerTensors& tensors,
                             const FormatRequest& request);

/// The same of the layer's shared experts, whose inputs go through nothing.
ExpertFormats shared_formats(const MoeLayerSpec& layer, const LayerTensors& tensors,
                             const FormatRequest& request);

}  // namespace gantry
