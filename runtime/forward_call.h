#pragma once

#include "runtime/fused_moe_layer.h"
#include "runtime/layer_operands.h"

namespace gantry {

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
  void run(const MoeInput& input, std::span<float> out);

 private:
  void route(const MoeInput& input);
  ExchangedTokens dispatch(const MoeInput& input);
  void run_experts(const MoeInput& input, const ExchangedTokens& tokens, std::span<float> sum);
  void add_identity_experts(const MoeInput& input, std::span<float> own) const;
  void add_shared_experts(const MoeInput& input, std::span<float> own);
  void combine(std::span<float> partial, std::span<float> out);
  void count_tokens(const ExchangedTokens& tokens, bool physical_ids);
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
