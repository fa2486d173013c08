#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/expert_slot.h"
#include "loader/load_ledger.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "loader/weight_loader.h"
#include "parallel/parallel_config.h"

namespace gantry {

/// One quantized matrix of one expert (-1: of the shared experts): read, brought into the slot's
/// format (codes and scales, or f32) and packed into every slot that holds it. Internal.
struct EncodedJob {
  int expert = -1;
  Part part = Part::kW1;
  Slice out;  ///< rows that this rank owns
  Slice in;   ///< columns
  SlotTarget target;
  struct Destination {
    std::byte* slot = nullptr;  ///< null in plans without memory
    int64_t ledger_id = -1;
  };
  std::vector<Destination> destinations;
};

/// The tensors of a job's matrix: its weight, where it has one, then the others.
std::vector<const TensorSource*> encoded_sources(const LayerTensors& tensors, int expert,
                                                 Part part);

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

/// Bytes that a job reads: its expert's part of each tensor.
int64_t encoded_bytes(const LayerTensors& tensors, int expert, Part part);

/// Reads, decodes and packs. What is wrong with the tensors becomes a finding.
/// @return bytes read
int64_t run_encoded_job(const Checkpoint& checkpoint, const MoeModelConfig& config,
                        const MoeLayerSpec& layer, const LayerTensors& tensors,
                        const EncodedJob& job, const LoadOptions& options, LoadLedger& ledger,
                        LoadReport& report);

}  // namespace gantry
