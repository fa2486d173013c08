#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/cuda/device.h"
#include "parallel/device_communicator.h"
#include "runtime/fused_moe_layer.h"

namespace gantry GANTRY_API {

struct DeviceWeights;
struct DeviceScratch;
struct DeviceKernelPlan;
class DeviceExchange;

struct DeviceMoeOptions {
  Threads threads;  ///< that pack weights while they are copied to the GPU
  bool skip_shared_experts = false;
  /// Quantizes rows as the checkpoint declares: fp8 static, per token or per group of 128, int8
  /// static or per token. Batches of all sizes, on every GPU: codes are exact in bf16, and sums
  /// take the scales; e4m3 weights meet e4m3 rows where wgmma does (sm_90a). Other schemes: bf16
  /// rows. What was chosen is logged.
  bool quantize_rows = false;
  /// Shared experts on a stream of the workspace, beside the routed ones.
  bool overlap_shared_experts = true;
  /// Only kernels that every GPU has, to compare with those of this one.
  bool generic_kernels = false;
  /// One GEMM kernel whatever the batch, so that a row's bits do not depend on its batch.
  bool batch_invariant = false;
  /// How ranks' sums are added. The same on all ranks.
  SumOrder reduce = SumOrder::kRank;
};

/// A batch in GPU memory, with as much of its routing as the caller has; null is what it has not.
/// Shapes as in MoeInput.
struct DeviceMoeInput {
  int64_t num_tokens = 0;
  const float* hidden_states = nullptr;
  const float* router_hidden_states = nullptr;
  const float* router_logits = nullptr;
  const int32_t* topk_ids = nullptr;  ///< ids outside [0, E) count as none
  const float* topk_weights = nullptr;
  bool physical_ids = false;
  const int32_t* token_ids = nullptr;  ///< with hash routing
  /// With dp_size > 1: tokens of each token group, [dp_size] in host memory, the same on all ranks.
  std::span<const int64_t> group_tokens{};
};

/// GPU memory that forward calls write besides their output: made once, used by one stream at a
/// time. May serve every layer of the same sizes.
class DeviceWorkspace {
 public:
  DeviceWorkspace(DeviceWorkspace&& other) noexcept;
  DeviceWorkspace& operator=(DeviceWorkspace&& other) noexcept;
  ~DeviceWorkspace();
  /// Longer batches are cut into chunks of this many tokens.
  [[nodiscard]] int64_t max_num_tokens() const noexcept { return max_num_tokens_; }
  [[nodiscard]] int64_t bytes() const noexcept;

 private:
  friend class DeviceMoeLayer;
  DeviceWorkspace(std::unique_ptr<DeviceScratch> scratch, int64_t max_num_tokens);
  std::unique_ptr<DeviceScratch> scratch_;
  int64_t max_num_tokens_;
};

/// One MoE layer of one rank on a GPU: the same function as FusedMoeLayer, with bf16 rows (f16 rows
/// where the weights are f16).
///
/// With several ranks tokens move as in allgather_reducescatter: every rank computes its experts'
/// (and its TP shard's) part of every token, and the parts are added in rank order, or as the
/// transport does it. Of several copies of an expert the first one computes.
///
/// Inputs of the experts and what is between their GEMMs are rounded to bf16; everything else is
/// f32. A token's expert outputs are added in ascending logical expert id. The same input gives the
/// same bits: no atomics, no order that timing decides.
///
/// Threads: const; calls at once need different workspaces and streams. With several ranks, every
/// rank must make the same calls in the same order, one at a time.
class DeviceMoeLayer {
 public:
  /// Copies the weights to the device; `weights` may go afterwards.
  /// @param world ranks of weights.parallel on `device`; may be null for a single rank; must
  ///              outlive the layer
  /// @throws Error kInvalidArgument if weights, map and world do not belong together
  /// @throws Error kUnsupported for sequence parallel ranks, a rank without experts, custom
  ///         routing, groups that are no multiple of 16
  DeviceMoeLayer(std::shared_ptr<Device> device, const MoeLayerWeights& weights,
                 const ExpertMap& experts, DeviceMoeOptions options,
                 DeviceCommunicator* world = nullptr);
  DeviceMoeLayer(const DeviceMoeLayer&) = delete;
  DeviceMoeLayer& operator=(const DeviceMoeLayer&) = delete;
  ~DeviceMoeLayer();

  /// @throws Error kInvalidArgument below 1 token; kOutOfMemory
  [[nodiscard]] DeviceWorkspace make_workspace(int64_t max_num_tokens) const;

  /// Enqueues one batch and returns. Allocates nothing, waits for nothing, so it may be captured
  /// into a CUDA graph; with several ranks only where their communicator does not wait.
  /// @param out [T, H] f32 on the device, written; must not overlap the input
  void forward(const DeviceMoeInput& input, DeviceWorkspace& workspace, float* out,
               StreamHandle stream) const;

  /// A batch in host memory: copies it in, runs it, copies the result out and waits for it.
  /// Collective; group_tokens are found out here.
  /// @throws Error kInvalidArgument as FusedMoeLayer::forward does
  void forward_host(const MoeInput& input, DeviceWorkspace& workspace, std::span<float> out) const;

  /// Rows of each logical expert in the last (chunk of a) batch of a workspace whose stream is
  /// idle; zeros after a batch of physical ids, and on TP ranks but the first.
  [[nodiscard]] std::vector<int64_t> last_tokens_per_expert(const DeviceWorkspace& workspace) const;

  [[nodiscard]] const DeviceWeights& weights() const noexcept { return *weights_; }
  [[nodiscard]] const std::shared_ptr<Device>& device() const noexcept { return device_; }
  /// Between ranks, by all forward calls so far.
  [[nodiscard]] ExchangeBytes bytes_moved() const noexcept;
  /// Bytes of all weights on the device.
  [[nodiscard]] int64_t weight_bytes() const noexcept;
  /// "mma.sync; wgmma from 33 rows an expert, e4m3 x e4m3": the kernels, and why not others.
  [[nodiscard]] const std::string& kernel_text() const noexcept;

 private:
  [[nodiscard]] int64_t check_groups(const DeviceMoeInput& input) const;

  std::shared_ptr<Device> device_;
  DeviceMoeOptions options_;
  std::unique_ptr<DeviceWeights> weights_;
  std::unique_ptr<DeviceKernelPlan> plan_;
  std::unique_ptr<DeviceExchange> exchange_;  // null for a single rank
};

}  // namespace gantry
