#pragma once

// Internal.

#include <cstdint>
#include <string>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/expert_slot.h"
#include "loader/family_spec.h"
#include "loader/load_ledger.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "parallel/parallel_config.h"

namespace gantry {

/// What one expert's inputs go through before they meet its quantized matrices.
///
/// Activation order (GPTQ's desc_act, compressed-tensors' actorder): inputs are in groups by g_idx,
/// not by position. Sorted by group (stably, over the whole matrix, so that tensor parallel ranks
/// get whole groups) they are in order. The hidden state is gathered in w13's order; w2's order is
/// taken by the rows of w1 and w3, and costs nothing at run time.
struct ExpertTransform {
  std::vector<int32_t> x_order;    ///< [H] input of w1 and w3 at each k; empty: as they are
  std::vector<int32_t> mid_order;  ///< [I] input of w2 at each k, row of w1 and w3; or empty
  std::vector<float> x_factors;    ///< [H] pre_quant_scale of w1 and w3, by input; or empty
  std::vector<float> mid_factors;  ///< [I] that of w2; or empty
};

/// Those of a layer's experts, and the sections that slots need for them.
struct LayerTransforms {
  std::vector<ExpertTransform> experts;  ///< [E]
  InputTransforms sections;
  std::string reason;  ///< why slots cannot have them; empty if they can
};

/// Reads every g_idx and pre_quant_scale of a layer. What does not fit is left to the jobs that
/// read the matrices: here it is a reason.
/// @throws Error kIo
LayerTransforms read_transforms(const Checkpoint& checkpoint, const FamilySpec& family,
                                const MoeLayerSpec& layer, const LayerTensors& tensors);

/// The sections of one expert for every slot that holds it.
struct TransformJob {
  const ExpertTransform* transform = nullptr;
  Slice intermediate;  ///< of this rank, in w2's order
  struct Destination {
    std::byte* slot = nullptr;  ///< null in plans without memory
    int64_t ledger_id = -1;
  };
  std::vector<Destination> destinations;
};

/// Bytes that a job writes into each slot.
int64_t transform_bytes(const SlotLayout& layout) noexcept;

void run_transform_job(const TransformJob& job, const SlotLayout& layout, LoadLedger& ledger);

}  // namespace gantry
