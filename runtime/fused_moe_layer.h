#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/cpu_features.h"
#include "kernels/base/parallel_for.h"
#include "kernels/permute/token_permutation.h"
#include "loader/layer_weights.h"
#include "parallel/communicator.h"
#include "parallel/expert_map.h"
#include "parallel/token_exchange.h"
#include "runtime/expert_mlp.h"
#include "runtime/router.h"

namespace gantry {

struct FusedMoeOptions {
  ActivationDType activations = ActivationDType::kBF16;
  IsaSet isas = host_isas();
  Threads threads;
  /// Longer batches are cut into chunks of this many tokens (not with dp_size > 1, where groups may
  /// hold different numbers of tokens). Bounds the scratch memory.
  int64_t max_num_tokens = 4096;
  /// Leaves the shared experts to the caller (who overlaps them with something else, say).
  bool skip_shared_experts = false;
};

/// A batch of tokens, with as much of its routing as the caller has.
struct MoeInput {
  std::span<const float> hidden_states{};  // [T, H]
  /// What the router sees where it is not the experts' input (Gemma 4: before the norm); [T, H] or
  /// empty.
  std::span<const float> router_hidden_states{};
  std::span<const float> router_logits{};  // [T, routing.num_experts], or empty: computed
  std::span<const int32_t> topk_ids{};     // [T, K] logical ids, -1 for none, or empty: computed
  std::span<const float> topk_weights{};   // [T, K], with topk_ids
  std::span<const int32_t> token_ids{};    // [T], for hash routing
};

/// Times of the last forward call, in microseconds.
struct ForwardTimes {
  double route_us = 0.0;
  double dispatch_us = 0.0;
  double experts_us = 0.0;
  double combine_us = 0.0;
  [[nodiscard]] double total_us() const noexcept {
    return route_us + dispatch_us + experts_us + combine_us;
  }
};

/// One MoE layer of one rank: routing, dispatch, experts, combine, shared experts.
///
///   out = output_scale * (sum over selected experts e of w_e * MLP_e(x)
///                         + sum of identity weights * x + [gate(x) *] MLP_shared(x))
///
/// A token's expert outputs are added in ascending logical expert id in f32. Results of a rank do
/// not depend on the number of threads. Calls on one object must not overlap; different layers may
/// run at once. With several ranks every rank must call forward in the same order.
class FusedMoeLayer {
 public:
  /// @param weights moved in
  /// @param world   ranks of weights.parallel; may be null for a single rank; must outlive the
  /// layer
  /// @throws Error kInvalidArgument if weights, map and world do not belong together
  FusedMoeLayer(MoeLayerWeights weights, ExpertMap experts, FusedMoeOptions options,
                Communicator* world);
  FusedMoeLayer(const FusedMoeLayer&) = delete;
  FusedMoeLayer& operator=(const FusedMoeLayer&) = delete;
  ~FusedMoeLayer() = default;

  /// @param out [T, H] f32, written; must not overlap the input
  /// @throws Error kInvalidArgument if a size does not fit
  void forward(const MoeInput& input, std::span<float> out);

  [[nodiscard]] const MoeLayerWeights& weights() const noexcept { return weights_; }
  [[nodiscard]] const ForwardTimes& last_times() const noexcept { return times_; }
  /// Tokens that took each logical expert so far, counted on the rank that computes it.
  [[nodiscard]] std::span<const int64_t> tokens_per_expert() const noexcept {
    return tokens_per_expert_;
  }
  /// The routing of the last (chunk of a) batch of this rank's own tokens.
  [[nodiscard]] const Routing& last_routing() const noexcept { return routing_; }

 private:
  void forward_chunk(const MoeInput& input, std::span<float> out);
  void route(const MoeInput& input, int64_t num_tokens);
  void run_experts(const ExchangedTokens& tokens);
  void add_identity_experts(const MoeInput& input, int64_t own_begin);
  void add_shared_experts(const MoeInput& input, int64_t own_begin);
  void count_tokens(const ExchangedTokens& tokens);

  MoeLayerWeights weights_;
  ExpertMap experts_;
  FusedMoeOptions options_;
  std::unique_ptr<Communicator> self_;
  TokenExchange exchange_;
  Router router_;
  std::vector<int32_t> expert_to_slot_;     // [E] slots that this rank computes
  std::vector<int64_t> tokens_per_expert_;  // [E]
  ForwardTimes times_;

  // Scratch, kept between calls.
  Routing routing_;
  TokenPermutation permutation_;
  ExpertMlpScratch mlp_scratch_;
  std::vector<float> expert_input_;   // [T', He] latent projection of the tokens
  std::vector<float> rows_;           // [M, He]
  std::vector<float> row_outputs_;    // [M, He]
  std::vector<float> latent_sum_;     // [T', He]
  std::vector<float> partial_;        // [T', H]
  std::vector<float> shared_rows_;    // [T, H]
  std::vector<float> shared_output_;  // [T, H]
};

}  // namespace gantry
