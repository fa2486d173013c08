#pragma once

#include "runtime/fused_moe_layer.h"
#include "runtime/layer_operands.h"

namespace gantry {

/// The same on every rank, whether it has their weights or not.
inline bool adds_shared_experts(const MoeLayerSpec& spec, const FusedMoeOptions& options) noexcept {
  return spec.shared.intermediate_size > 0 && !options.skip_shared_experts;
}

/// One chunk of a forward call: what it reads and where it works. Internal.
class ForwardCall {
 public:
  /// @param exchange null for a single rank
  ForwardCall(const LayerOperands& operands, const FusedMoeOptions& options,
              TokenExchange* exchange, Workspace& workspace)
      : operands_(operands),
        weights_(operands.weights),
        options_(options),
        exchange_(exchange),
        workspace_(workspace) {}

  /// Adds its times to the workspace's.
  /// @param remaining tokens of the call that follow in further chunks
  /// @return true while some rank has tokens left
  bool run(const MoeInput& input, int64_t remaining, std::span<float> out);

 private:
  void route(const MoeInput& input);
  ExchangedTokens dispatch(const MoeInput& input, int64_t remaining);
  void permute(const MoeInput& input, const ExchangedTokens& tokens);
  /// Adds up (or with `out_row` leaves apart) what this rank's experts give: [.., expert width].
  void run_experts(const ExchangedTokens& tokens, std::span<const float> x, const int32_t* out_row,
                   std::span<float> sum);
  void run_partial(const ExchangedTokens& tokens, bool with_latent_bias, std::span<float> partial);
  /// Both write the results of the own tokens and return the time of the experts, in us.
  double run_ranked(const MoeInput& input, const ExchangedTokens& tokens, std::span<float> own);
  double run_ordered(const MoeInput& input, const ExchangedTokens& tokens, std::span<float> own);
  std::span<const float> expert_input(const ExchangedTokens& tokens);
  void project_latent(std::span<const float> sum, bool with_bias, std::span<float> out);
  void add_latent_bias(std::span<float> own) const;
  void add_identity_experts(std::span<const float> x, std::span<const float> weights,
                            std::span<float> sum) const;
  void add_own_identity_experts(const MoeInput& input, const ExchangedTokens& tokens,
                                std::span<float> own) const;
  void run_shared_experts(std::span<const float> x, bool clear, std::span<float> sum);
  void finish(std::span<float> out) const;
  void count_tokens(const ExchangedTokens& tokens, bool physical_ids);
  [[nodiscard]] bool runs_shared_experts() const noexcept {
    return operands_.shared.num_slots > 0 && !options_.skip_shared_experts;
  }
  /// Whether ranks exchange physical ids: those of the engine, or of the copies chosen here.
  [[nodiscard]] bool uses_physical_ids(const MoeInput& input) const {
    return input.physical_ids || !operands_.replicas.empty();
  }

  const LayerOperands& operands_;
  const MoeLayerWeights& weights_;
  const FusedMoeOptions& options_;
  TokenExchange* exchange_;
  Workspace& workspace_;
};

}  // namespace gantry
