#pragma once

#include "loader/layer_weights.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

/// A small layer with random weights, made in memory.
struct ToyLayer {
  int num_experts = 6;
  int top_k = 2;
  int64_t hidden_size = 24;
  int64_t intermediate_size = 20;
  int64_t shared_intermediate_size = 0;
  DType dtype = DType::kF32;

  [[nodiscard]] MoeLayerSpec spec() const;
  /// All weights, for a single rank.
  [[nodiscard]] MoeLayerWeights weights(SeededRng& rng) const;
  [[nodiscard]] ExpertMap expert_map() const {
    return ExpertMap::create(num_experts, 1, Placement::kLinear);
  }
};

/// The layer in double by the plainest loops: out[t] += w * W2 (silu(W1 x) * (W3 x)) over the given
/// experts, plus shared experts. The oracle of the runtime's tests.
std::vector<double> naive_forward(const MoeLayerWeights& weights, const std::vector<float>& x,
                                  const std::vector<int32_t>& topk_ids,
                                  const std::vector<float>& topk_weights, int64_t top_k);

}  // namespace gantry::test
