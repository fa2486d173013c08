#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "loader/mxfp4_layout.h"
#include "loader/spelling.h"
#include "loader/tensor_geometry.h"
#include "loader/tensor_map.h"

namespace gantry GANTRY_API {

/// Part of a target tensor that comes from one source tensor: a matrix with a layout on each side.
struct RelayoutPart {
  const CheckpointTensor* source = nullptr;
  FileView from;  ///< in the source tensor
  FileView to;    ///< in the target tensor; same size
  /// MXFP4 that the target stores otherwise: `from` counts bytes of this view of the source.
  Mxfp4View view = Mxfp4View::kStored;
  const CheckpointTensor* scales = nullptr;  ///< of Mxfp4View::kGgml, whose source are the codes
};

/// A run of a target tensor that is computed at once: one expert's matrix, or all of a tensor that
/// is copied as it is.
struct RelayoutSlab {
  size_t target = 0;         ///< index into RelayoutPlan::tensors
  int64_t offset_bytes = 0;  ///< in the target tensor
  int64_t element_bytes = 1;
  int64_t rows = 0;  ///< of the slab as the target stores it
  int64_t cols = 0;
  bool rows_are_out = true;
  /// Together they give every element of the slab once. Offsets of `to` count from the tensor's
  /// start.
  std::vector<RelayoutPart> parts;
};

/// Tensors that must hold the same bytes, since the target has one place for both (a scale that
/// gate and up share once they are fused).
struct RelayoutEqual {
  std::string name;  ///< first source tensor, for messages
  const CheckpointTensor* first = nullptr;
  const CheckpointTensor* second = nullptr;
  std::string other_name;
  int layer = -1;
  int expert = -1;
};

/// A small tensor whose bytes the plan knows: sizes, or indices that are counted anew.
struct RelayoutLiteral {
  size_t target = 0;  ///< index into RelayoutPlan::tensors
  std::vector<std::byte> bytes;
};

/// How the tensors of one checkpoint become those of another spelling with the same content.
struct RelayoutPlan {
  std::vector<TensorInfo> tensors;  ///< of the target, in the source's order of bytes
  std::vector<RelayoutSlab> slabs;  ///< in the order of `tensors`
  std::vector<RelayoutLiteral> literals;
  std::vector<RelayoutEqual> equal;  ///< to be checked before anything is written
  std::vector<std::string> notes;
  int64_t num_expert_tensors = 0;  ///< of the target
  int64_t num_renamed = 0;         ///< others whose name changes
  int64_t total_bytes = 0;         ///< of the target
  /// How all experts are stored where that is not how the source has them: its config says
  /// something else, and the target's has to say this.
  std::optional<Mxfp4Layout> mxfp4;
};

/// The names that a conversion writes.
struct RelayoutTarget {
  SpellingChoice choice = SpellingChoice::kOriginal;
  const FamilySpec* family = nullptr;  ///< null: the source's
  std::string prefix = {};             ///< of another family's names
  /// Names of tensors that are in no MoE block, for another family.
  std::function<std::string(const std::string&)> other_name = {};
};

/// Plans a conversion. Experts are laid out anew; the other tensors of MoE layers keep their bytes
/// and take the target's names; what belongs to other parts of the model (attention, multi-token
/// prediction layers ...) is copied as it is. MXFP4 goes from one layout to another where the
/// target has one of its own: stacked blocks of gpt-oss, compressed-tensors' packed matrices one
/// expert at a time, GGUF's blocks.
///
/// Nothing is read but headers. The map must have no findings.
///
/// @throws Error kUnsupported naming the tensor, where a quantized tensor cannot be split or joined
///         at the border of gate and up or of experts, or has no name in the target spelling; for
///         GGUF's blocks other than MXFP4, and for quantized tensors that would change the family
/// @throws Error kFormat naming the tensor, where shapes of quantized tensors do not fit together
RelayoutPlan plan_relayout(const Checkpoint& checkpoint, const MoeModelConfig& config,
                           const TensorMap& map, const RelayoutTarget& target);
inline RelayoutPlan plan_relayout(const Checkpoint& checkpoint, const MoeModelConfig& config,
                                  const TensorMap& map, SpellingChoice choice) {
  return plan_relayout(checkpoint, config, map, RelayoutTarget{.choice = choice});
}

}  // namespace gantry
