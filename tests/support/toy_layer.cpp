#include "tests/support/toy_layer.h"

#include <algorithm>
#include <cmath>

namespace gantry::test {
namespace {

float scale(int64_t fan) { return 1.0F / std::sqrt(static_cast<float>(fan)); }

void fill(const PackedLayout& layout, std::byte* packed, SeededRng& rng) {
  pack_matrix(layout, rng.normals(static_cast<size_t>(layout.n * layout.k), scale(layout.k)).data(),
              packed);
}

void fill_slot(const SlotLayout& layout, std::byte* slot, SeededRng& rng) {
  fill(layout.w13_panels, slot + layout.w13.offset, rng);
  fill(layout.w2_panels, slot + layout.w2.offset, rng);
}

// y += factor * W2 (silu(W1 x) * (W3 x)) for one slot.
void add_mlp(const SlotLayout& layout, const std::byte* slot, const float* x, double factor,
             double* y) {
  const std::vector<float> w13 = read_w13(layout, slot);
  const std::vector<float> w2 = read_w2(layout, slot);
  const int64_t h = layout.hidden_size;
  const int64_t j = layout.intermediate_size;
  std::vector<double> hidden(static_cast<size_t>(j));
  for (int64_t i = 0; i < j; ++i) {
    double gate = 0.0;
    double up = 0.0;
    for (int64_t k = 0; k < h; ++k) {
      gate += static_cast<double>(w13[static_cast<size_t>(i * h + k)]) * x[k];
      up += static_cast<double>(w13[static_cast<size_t>((j + i) * h + k)]) * x[k];
    }
    hidden[static_cast<size_t>(i)] = gate / (1.0 + std::exp(-gate)) * up;
  }
  for (int64_t k = 0; k < h; ++k) {
    double sum = 0.0;
    for (int64_t i = 0; i < j; ++i) {
      sum += w2[static_cast<size_t>(k * j + i)] * hidden[static_cast<size_t>(i)];
    }
    y[k] += factor * sum;
  }
}

}  // namespace

MoeLayerSpec ToyLayer::spec() const {
  MoeLayerSpec spec;
  spec.num_experts = num_experts;
  spec.hidden_size = hidden_size;
  spec.expert_hidden_size = hidden_size;
  spec.intermediate_size = intermediate_size;
  spec.routing.num_experts = num_experts;
  spec.routing.top_k = top_k;
  spec.routing.renormalize = true;
  spec.shared.intermediate_size = shared_intermediate_size;
  return spec;
}

MoeLayerWeights ToyLayer::weights(SeededRng& rng) const {
  MoeLayerWeights weights;
  weights.spec = spec();
  weights.layout = SlotLayout::create(dtype, true, false, intermediate_size, hidden_size);
  weights.num_slots = num_experts;
  weights.slots = ByteBuffer(static_cast<size_t>(num_experts * weights.layout.stride_bytes));
  for (int e = 0; e < num_experts; ++e)
    fill_slot(weights.layout, weights.slots.data() + e * weights.layout.stride_bytes, rng);
  weights.router = Buffer<float>(static_cast<size_t>(num_experts * hidden_size));
  const std::vector<float> router = rng.normals(weights.router.size(), scale(hidden_size));
  std::copy(router.begin(), router.end(), weights.router.data());
  if (shared_intermediate_size > 0) {
    weights.shared_layout =
        SlotLayout::create(dtype, true, false, shared_intermediate_size, hidden_size);
    weights.shared = ByteBuffer(static_cast<size_t>(weights.shared_layout.stride_bytes));
    fill_slot(weights.shared_layout, weights.shared.data(), rng);
  }
  return weights;
}

std::vector<double> naive_forward(const MoeLayerWeights& weights, const std::vector<float>& x,
                                  const std::vector<int32_t>& topk_ids,
                                  const std::vector<float>& topk_weights, int64_t top_k) {
  const int64_t h = weights.spec.hidden_size;
  std::vector<double> y(x.size(), 0.0);
  for (int64_t t = 0; t < static_cast<int64_t>(x.size()) / h; ++t) {
    for (int64_t k = 0; k < top_k; ++k) {
      const int32_t expert = topk_ids[static_cast<size_t>(t * top_k + k)];
      if (expert < 0) continue;
      add_mlp(weights.layout, weights.slots.data() + expert * weights.layout.stride_bytes,
              x.data() + t * h, topk_weights[static_cast<size_t>(t * top_k + k)], y.data() + t * h);
    }
    if (weights.shared.size() > 0) {
      add_mlp(weights.shared_layout, weights.shared.data(), x.data() + t * h, 1.0,
              y.data() + t * h);
    }
  }
  return y;
}

}  // namespace gantry::test
