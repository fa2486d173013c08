#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_matrix.h"
#include "loader/layer_weights.h"
#include "parallel/expert_map.h"

namespace gantry GANTRY_API {

/// The experts of a rank in GPU memory: what a rebalance replaces. Made once, then only read.
struct DeviceExperts {
  /// @param slots those of `map` on `ep_rank`, in its order
  DeviceExperts(const std::shared_ptr<Device>& device, ExpertMap map, int ep_rank,
                DeviceBuffer slots);

  ExpertMap map;
  int64_t num_slots;  ///< L
  DeviceBuffer slots;

  /// Of logical ids, and of physical ones: slot or -1 (another rank computes it), place in the
  /// order of summation; the EP rank that does compute it. Of several copies of an expert the first
  /// one computes.
  struct IdMap {
    DeviceBuffer slot;
    DeviceBuffer rank;
    DeviceBuffer ep_rank;  ///< that computes an id
    int32_t num_ids = 0;
  };
  IdMap logical;
  IdMap physical;
};

/// One MoE layer of one rank in GPU memory: its slots in the order of DeviceSlotLayout, and the
/// small tensors beside them. Made once, then only read.
struct DeviceWeights {
  /// Packs and copies. While one slot is copied from pinned memory the next one is packed.
  /// @throws Error kUnsupported for what GPU kernels do not read; kOutOfMemory; kCuda
  DeviceWeights(std::shared_ptr<Device> device, const MoeLayerWeights& weights,
                const ExpertMap& experts, const Threads& threads);

  std::shared_ptr<Device> device;
  MoeLayerSpec spec;
  ActivationScheme activations;  ///< what the checkpoint declares for the routed experts' inputs
  std::string activations_obstacle;  ///< why inputs cannot be quantized like that, or empty
  /// f32 [2, num_slots]: static scales of the inputs of w13 and of w2; empty with another scheme
  DeviceBuffer input_scales;
  ParallelConfig parallel;
  DeviceSlotLayout layout;
  std::shared_ptr<const DeviceExperts> experts;  ///< as loaded
  DeviceSlotLayout shared_layout;
  DeviceBuffer shared;  ///< one slot, or empty

  // f32, or empty; shapes as in MoeLayerWeights.
  DeviceBuffer router;
  DeviceBuffer router_bias;
  DeviceBuffer correction_bias;
  DeviceBuffer per_expert_scale;
  DeviceBuffer router_scale;
  DeviceBuffer output_norm;
  DeviceBuffer hash_table;  ///< i32 [vocab, K]
  DeviceBuffer shared_gate;
  DeviceBuffer latent_in;
  DeviceBuffer latent_out;
  DeviceBuffer latent_in_bias;
  DeviceBuffer latent_out_bias;
  int64_t vocab = 0;
};

}  // namespace gantry
