#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/cpu_features.h"
#include "kernels/base/parallel_for.h"
#include "loader/layer_weights.h"

namespace gantry {

/// The routing of a batch. Capacity is kept between batches.
struct Routing {
  std::vector<float> logits;            // [T, routing.num_experts]
  std::vector<int32_t> topk_ids;        // [T, K]
  std::vector<float> topk_weights;      // [T, K]
  std::vector<float> identity_weights;  // [T], where the layer has zero experts
};

/// Computes which experts each token takes. Always in f32 and from the unrounded hidden states,
/// whatever the activations of the experts are.
class Router {
 public:
  /// @param weights must outlive the router
  explicit Router(const MoeLayerWeights& weights) : weights_(&weights) {}

  /// Logits: z = W_r x (+ bias), after the input norm and the soft cap where the family has them.
  /// @param hidden_states [T, H]
  void compute_logits(std::span<const float> hidden_states, IsaSet isas, const Threads& threads,
                      Routing& routing) const;

  /// Ids and weights from routing.logits.
  /// @param token_ids [T], read by hash routing only
  void select(int64_t num_tokens, std::span<const int32_t> token_ids, Routing& routing) const;

 private:
  const MoeLayerWeights* weights_;
};

}  // namespace gantry
