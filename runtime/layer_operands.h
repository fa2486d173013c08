#pragma once

#include <cstdint>
#include <vector>

#include "kernels/fused_moe/fused_experts.h"
#include "loader/layer_weights.h"
#include "parallel/expert_map.h"
#include "parallel/replica_table.h"
#include "runtime/fused_moe_layer.h"

namespace gantry {

/// A dense matrix [n, k] in panels, with its bias: of bf16 where that holds every value, which is
/// half to read, else of f32. It meets rows of f32.
struct DenseOperand {
  PackedLayout layout;
  ByteBuffer panels;
  const float* bias = nullptr;  // [n] or null
  FusedExpertsKernels kernels;
};

/// The static scale of an expert's inputs, 0 where the file has none. Of layouts with
/// static_inputs.
[[nodiscard]] float input_scale(const MoeLayerWeights& weights, int64_t slot, Part part);

/// Weights and everything that follows from them: made when weights arrive, then only read, so that
/// one swap of a pointer replaces all of it. Internal.
struct LayerOperands {
  LayerOperands(MoeLayerWeights loaded, ExpertMap map, const FusedMoeOptions& options);
  LayerOperands(const LayerOperands&) = delete;
  LayerOperands& operator=(const LayerOperands&) = delete;
  ~LayerOperands() = default;

  MoeLayerWeights weights;
  ExpertMap experts;
  PackedExperts routed;
  PackedExperts shared;  // one slot; none where num_slots is 0
  DenseOperand router;
  DenseOperand latent_in;
  DenseOperand latent_out;
  ActivationDType routed_activations = ActivationDType::kBF16;  // kInt8 is a scheme here
  RowQuantizer x_quantizer;   // of the routed experts, with ActivationDType::kScheme
  RowQuantizer up_quantizer;  // of w3's input, where some expert's static scale of it is another
  bool room_for_up_rows = false;  // in workspaces: some expert's is, or experts may come whose is
  RowQuantizer intermediate_quantizer;
  FusedExpertsKernels routed_kernels;
  FusedExpertsKernels shared_kernels;
  std::vector<int32_t> logical_to_slot;      // [E] slots that this rank computes, or -1
  std::vector<int32_t> physical_to_slot;     // [P] slots of this rank, or -1
  std::vector<int32_t> physical_to_logical;  // [P]
  std::vector<int32_t> logical_to_rank;      // [E] EP rank that computes an expert
  std::vector<int32_t> physical_to_rank;     // [P]
  std::vector<int32_t> slot_order;           // [L] ascending logical expert
  ReplicaTable replicas;                     // empty: replica 0 computes all tokens
};

}  // namespace gantry
