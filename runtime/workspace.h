#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/fused_moe/fused_experts.h"
#include "kernels/permute/token_permutation.h"
#include "kernels/topk/topk_routing.h"
#include "parallel/exchange_scratch.h"

namespace gantry GANTRY_API {

/// The routing of a batch.
struct Routing {
  std::vector<float> logits;            // [T, routing.num_experts]
  std::vector<int32_t> topk_ids;        // [T, K]
  std::vector<float> topk_weights;      // [T, K]
  std::vector<float> identity_weights;  // [T], where the layer has zero experts
};

/// Times of one forward call, in microseconds.
struct ForwardTimes {
  double route_us = 0.0;
  double dispatch_us = 0.0;
  double experts_us = 0.0;
  double combine_us = 0.0;
  [[nodiscard]] double total_us() const noexcept {
    return route_us + dispatch_us + experts_us + combine_us;
  }
};

/// All memory that a forward call writes besides its output: made once by
/// `FusedMoeLayer::make_workspace`, owned by the caller, then used by any number of calls, one at a
/// time. A workspace may serve every layer of the same sizes.
///
/// It also keeps what the last call did: its routing, its times, and how many tokens each expert
/// got.
class Workspace {
 public:
  Workspace() = default;

  /// Longer batches are cut into chunks of this many tokens.
  [[nodiscard]] int64_t max_num_tokens() const noexcept { return max_num_tokens_; }
  [[nodiscard]] int64_t bytes() const noexcept;

  [[nodiscard]] const ForwardTimes& last_times() const noexcept { return times_; }
  /// The routing of the last (chunk of a) batch of this rank's own tokens.
  [[nodiscard]] const Routing& last_routing() const noexcept { return routing_; }
  /// Tokens that took each logical expert so far, counted on the rank that computes it.
  [[nodiscard]] std::span<const int64_t> tokens_per_expert() const noexcept {
    return tokens_per_expert_;
  }
  /// Tokens that each slot of this rank computed in the last call. [L]
  [[nodiscard]] std::span<const int64_t> tokens_per_slot() const noexcept {
    return tokens_per_slot_;
  }

 private:
  friend class FusedMoeLayer;
  friend class ForwardCall;

  int64_t max_num_tokens_ = 0;
  int64_t num_slots_ = 0;  // the most that a rank may hold
  Routing routing_;
  std::vector<TopkScratch> topk_;  // one a thread
  TokenPermutation permutation_;
  FusedExpertsScratch experts_;
  std::vector<int64_t> tokens_per_expert_;  // [E]
  std::vector<int64_t> tokens_per_slot_;    // [L]
  std::vector<int32_t> physical_ids_;       // [T, K], where tokens are spread over copies
  std::vector<float> gate_;                 // [T] sigmoid of the shared experts' gate
  Buffer<float> router_input_;              // [T, H], where the router normalises its input
  Buffer<float> expert_input_;              // [T', He] latent projection of the tokens
  Buffer<float> latent_sum_;                // [T', He]
  Buffer<float> partial_;                   // [T', H], or a row a choice, with several ranks
  Buffer<float> own_;                       // [own tokens, H], where ranks share tokens
  Buffer<float> shared_sum_;                // [T of the token group, H], ordered
  Buffer<int32_t> row_target_;              // [M] row of partial_ for each row, ordered
  ExchangeScratch exchange_;                // with several ranks
  ForwardTimes times_;
};

}  // namespace gantry
