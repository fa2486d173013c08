#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint.h"
#include "loader/encodings/activation_scheme.h"
#include "loader/expert_slot.h"
#include "loader/load_ledger.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"

namespace gantry {

/// How the inputs of a layer's routed experts are quantized: what the checkpoint declares if its
/// matrices are quantized, nothing if none is; refused if only some are, or if an input that is
/// quantized is scaled per channel first (pre_quant_scale; no checkpoint with a reference has
/// both), or if matrices declare different things.
ActivationScheme layer_activations(const LayerTensors& tensors, const MoeLayerSpec& layer);

/// That of the first MoE layer that declares one.
ActivationScheme model_activations(const MoeModelConfig& config, const TensorMap& tensors);

/// The static input scale of one projection of one expert, for every slot that holds a copy.
/// Internal.
struct InputScaleJob {
  const TensorSource* source = nullptr;      ///< null: the checkpoint lacks it
  const TensorSource* zero_point = nullptr;  ///< must be 0 where there is one
  const TensorSource* weight = nullptr;      ///< names the matrix in messages
  int expert = -1;
  Part part = Part::kW1;
  int64_t offset = 0;  ///< bytes from the start of a slot
  struct Destination {
    std::byte* slot = nullptr;  ///< null in plans without memory
    int64_t ledger_id = -1;
  };
  std::vector<Destination> destinations;
};

/// The job for one projection of one expert; its destinations are expected in the ledger.
InputScaleJob plan_input_scale(const MoeLayerSpec& layer, const LayerTensors& tensors, int expert,
                               Part part, const ActivationScheme& scheme, const SlotLayout& layout,
                               std::byte* slots, const std::vector<int32_t>& slot_ids,
                               LoadLedger& ledger);

/// Bytes that a job reads.
int64_t bytes_to_read(const InputScaleJob& job) noexcept;

/// Reads the scale into its slots as what the kernels take: the factor of quantize_row. A scale
/// that is missing, not one number, not finite or not above 0 is a finding (kInputScale: where that
/// is allowed, 0 stands for it, with which the scheme cannot run).
/// @param values_are_checked check_input_scales reports values, here only what is not a number
/// @return bytes read
/// @throws Error kIo if bytes cannot be read
int64_t run_input_scale_job(const Checkpoint& checkpoint, int layer, const InputScaleJob& job,
                            const ActivationScheme& scheme, bool values_are_checked,
                            LoadLedger& ledger, LoadReport& report);

}  // namespace gantry
