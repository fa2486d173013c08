#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/export.h"
#include "loader/encodings/activation_scheme.h"
#include "loader/expert_slot.h"
#include "loader/moe_config.h"
#include "loader/slot_pool.h"
#include "parallel/expert_map.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// What one rank holds of one MoE layer: its expert slots, and the small tensors beside them.
struct MoeLayerWeights {
  MoeLayerSpec spec;
  ParallelConfig parallel;
  /// Tensor parallel ranks share the intermediate size in units of so many neurons, so that they
  /// do not cut groups of scales into pieces that kernels cannot read (see split_in_units).
  int64_t cut_unit = 1;

  SlotLayout layout;
  int64_t num_slots = 0;         ///< L
  ActivationScheme activations;  ///< how the inputs of the routed experts are quantized
  SlotBuffer slots;              ///< num_slots * layout.stride_bytes

  // Small tensors are widened to f32 (exactly) and are the same on every rank.
  Buffer<float> router;            // [routing.num_experts, H]
  Buffer<float> router_bias;       // [routing.num_experts] or empty
  Buffer<float> correction_bias;   // [routing.num_experts] or empty
  Buffer<float> per_expert_scale;  // [E] or empty
  Buffer<float> router_scale;      // [H] or empty
  Buffer<float> output_norm;       // [H] or empty
  Buffer<int32_t> hash_table;      // [vocab, K] or empty
  Buffer<float> shared_gate;       // [H] or empty
  Buffer<float> latent_in;         // [latent, H] or empty
  Buffer<float> latent_out;        // [H, latent] or empty
  Buffer<float> latent_in_bias;    // [latent] or empty
  Buffer<float> latent_out_bias;   // [H] or empty

  /// Shared experts as one slot; empty where this rank does not compute them.
  SlotLayout shared_layout;
  ByteBuffer shared;

  [[nodiscard]] int64_t owned_bytes() const noexcept;
};

}  // namespace gantry
