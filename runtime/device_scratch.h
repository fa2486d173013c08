#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/plan_kernel.h"
#include "runtime/device_kernel_plan.h"
#include "runtime/device_moe_layer.h"
#include "runtime/device_weights.h"

namespace gantry {

/// Where a forward call on a GPU works: slices of one piece of device memory. Internal.
struct DeviceScratch {
  DeviceScratch(const DeviceWeights& weights, const DeviceExperts& experts,
                const DeviceMoeOptions& options, const DeviceKernelPlan& plan,
                int64_t max_num_tokens);

  int64_t max_tokens;    ///< T: of a batch, or of a rank's token group
  int64_t max_all;       ///< of all token groups, which a rank may have to compute on
  int64_t num_slots;     ///< at most
  int64_t max_own;       ///< that one rank owns
  int64_t max_rows = 0;  ///< of all experts, with padding
  DeviceBuffer memory;

  float* router_input = nullptr;  // [T, H] where the router normalises its input
  float* logits = nullptr;        // [T, routing.num_experts]
  int32_t* topk_ids = nullptr;    // [T, K]
  float* topk_weights = nullptr;  // [T, K]
  float* identity = nullptr;      // [T]
  float* gate = nullptr;          // [T]
  float* expert_input = nullptr;  // [T, He] with a latent projection
  float* latent_sum = nullptr;    // [T, He]
  float* base = nullptr;          // [T, H] routed experts after the latent projection
  // With several token groups: the tokens of all of them, in the order of groups
  float* all_x = nullptr;           // [all, H]
  int32_t* all_ids = nullptr;       // [all, K]
  float* all_weights = nullptr;     // [all, K]
  float* partial = nullptr;         // [all, H] this rank's sums
  float* own_sum = nullptr;         // [own, H]
  int64_t* token_counts = nullptr;  // [ranks]
  // all_to_all: lists of RankLists, for every EP rank and for every rank of the token group
  int32_t* lists = nullptr;        // [lists, own]
  int32_t* list_rows = nullptr;    // [ep_size, own]
  int32_t* list_counts = nullptr;  // [lists]
  int32_t* lost = nullptr;         // [ep_size]
  int32_t* pair_counts = nullptr;  // [2, ep_size], then [2, ranks]
  float* send_x = nullptr;         // [ep_size, own, H]
  int32_t* send_ids = nullptr;     // [ep_size, own, K]
  float* send_weights = nullptr;   // [ep_size, own, K]
  float* returned = nullptr;       // [ranks, own, H]; ordered: [tp_size, rows, He]
  // Combine ordered
  RowPlan own_choices{};             // of the own tokens, by EP rank
  int32_t* choice_list = nullptr;    // [all, K]
  int32_t* choice_count = nullptr;   // [1]
  float* choice_rows = nullptr;      // [all, K, He] at most
  float* returned_shared = nullptr;  // [tp_size, own, H]
  // Routed experts
  int32_t* chunk_rows = nullptr;
  int32_t* choice_row = nullptr;
  int32_t* row_choice = nullptr;
  TokenTile* tiles = nullptr;
  int32_t* totals = nullptr;
  uint16_t* rows = nullptr;          // [max_rows, padded He]
  uint16_t* intermediate = nullptr;  // [max_rows, padded J]
  float* y = nullptr;                // [max_rows, He]
  // e4m3 rows, where a plan quantizes them
  uint8_t* rows8 = nullptr;  // [max_rows, padded He]
  float* row_scales = nullptr;
  uint16_t* intermediate_codes = nullptr;  // [max_rows, padded J] bf16, or bytes of e4m3
  float* intermediate_scales = nullptr;
  // Shared experts, on a stream of their own
  std::unique_ptr<OwnedStream> side;
  std::unique_ptr<OwnedEvent> fork;
  std::unique_ptr<OwnedEvent> join;
  uint16_t* shared_rows = nullptr;
  uint16_t* shared_intermediate = nullptr;
  float* shared_y = nullptr;  // [T, H]
  // Of the last call, for who looks at it afterwards
  int64_t last_choices = 0;
  std::vector<int64_t> group_tokens{};  // of a chunk
  const int32_t* last_ids = nullptr;    // [last_choices] in scratch or the caller's
  // forward_host
  float* host_x = nullptr;
  float* host_router_x = nullptr;
  float* host_out = nullptr;
  int32_t* host_token_ids = nullptr;
};

}  // namespace gantry
