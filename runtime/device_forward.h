#pragma once

#include "kernels/cuda/device_kernels.h"
#include "runtime/device_exchange.h"
#include "runtime/device_kernel_plan.h"
#include "runtime/device_moe_layer.h"
#include "runtime/device_scratch.h"
#include "runtime/device_weights.h"

namespace gantry {

/// What a kernel takes of a spec. Internal.
DeviceRouting device_routing(const RoutingSpec& spec);

/// One chunk of a forward call on a GPU: the launches, in order. Internal.
class DeviceForward {
 public:
  /// @param exchange null for a single rank
  DeviceForward(const DeviceWeights& weights, const DeviceExperts& experts,
                const DeviceMoeOptions& options, const DeviceKernelPlan& kernel_plan,
                DeviceExchange* exchange, DeviceScratch& scratch, StreamHandle stream);

  /// @param exact with exchange slots: room for all tokens all the same
  void run(const DeviceMoeInput& input, bool exact, float* out);

 private:
  void run_on_ranks(const DeviceMoeInput& input, bool exact, float* out);
  /// Rows of single choices, added by the owners of the tokens as a single rank does.
  void run_ordered(const DeviceMoeInput& input, const DeviceMoeInput& computed,
                   const DispatchedTokens& tokens, float* out);
  /// This rank's part of the sums of every token that it computes on, [T', H].
  void run_partial(const DeviceMoeInput& computed, const DispatchedTokens& tokens, float* partial);
  void normalize(float* out);
  void route(const DeviceMoeInput& input);
  void plan(const DeviceMoeInput& input);
  void run_experts(const DeviceMoeInput& input);
  void run_routed(const DeviceMoeInput& input);
  /// The routed sum of a layer with a latent projection, into base_. @param bias [H] or none
  void project_latent(const CombineRows& sums, const DeviceBuffer& bias);
  /// Shared experts go to the workspace's own stream, which begins and ends with this one.
  void fork_shared(const DeviceMoeInput& input);
  void join_shared();
  void run_shared(const DeviceMoeInput& input);
  /// Where the next kernel goes.
  StreamPlace next();
  /// The weighted sums of this rank's experts' rows, [T, n].
  [[nodiscard]] CombineRows routed_sums(const DeviceMoeInput& input, int64_t n, float* out) const;
  void combine(const DeviceMoeInput& input, float* out);
  void linear(const float* x, const DeviceBuffer& w, const DeviceBuffer& bias, float* y, int64_t n,
              int64_t k, LinearEpilogue epilogue = LinearEpilogue::kNone, float softcap = 0.0F);
  void run_routed_rows16(const ExpertGemm& common, const float* x);
  void run_routed_codes(const ExpertGemm& common, const float* x);
  /// Launches `quantize`, to e4m3 or to codes in bf16. @return the GEMM of one matrix on its rows
  ExpertGemm quantize_rows(const ExpertGemm& common, QuantizeExpertRows& quantize,
                           const DeviceMatrix& matrix, int64_t bias_offset, uint8_t* codes8,
                           uint16_t* codes16);
  /// The kernel of this batch for such rows.
  [[nodiscard]] KernelLaunch<ExpertGemm> gemm_of_codes(const ExpertGemm& gemm) const;
  /// Both GEMMs of one set of slots; `tiles` null: dense rows.
  void run_gemms(const ExpertGemm& common, const DeviceSlotLayout& layout, const uint16_t* rows,
                 uint16_t* intermediate, float* y, int columns_index);

  [[nodiscard]] const DeviceExperts::IdMap& id_map(const DeviceMoeInput& input) const noexcept {
    return input.physical_ids ? experts_.physical : experts_.logical;
  }
  [[nodiscard]] bool runs_shared() const noexcept {
    return weights_.shared.size() > 0 && !options_.skip_shared_experts;
  }

  const DeviceWeights& weights_;
  const DeviceExperts& experts_;
  const DeviceMoeOptions& options_;
  const DeviceKernelPlan& kernel_plan_;
  DeviceExchange* exchange_;
  DeviceScratch& scratch_;
  StreamHandle stream_;
  bool after_kernel_ = false;
  const DeviceAttributes& attributes_;
  const DeviceKernels& kernels_;
  int64_t num_tokens_ = 0;  // of the step that runs
  const int32_t* topk_ids_ = nullptr;
  const float* topk_weights_ = nullptr;
  const float* identity_ = nullptr;
  const float* base_ = nullptr;
  RowPlan plan_{};
  int gemm_ = 0;  // index into kGemmColumns
};

}  // namespace gantry
