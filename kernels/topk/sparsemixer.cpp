#include "kernels/topk/sparsemixer.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gantry {
namespace {

// The best expert among those that are not `excluded`, lowest index first. NaN never wins; if
// nothing can win the lowest allowed index is taken, so that an id is always in range.
int32_t best_expert(std::span<const float> logits, int32_t excluded) {
  int32_t best = excluded == 0 ? 1 : 0;
  float top = -std::numeric_limits<float>::infinity();
  for (int32_t e = 0; e < static_cast<int32_t>(logits.size()); ++e) {
    if (e != excluded && logits[static_cast<size_t>(e)] > top) {
      top = logits[static_cast<size_t>(e)];
      best = e;
    }
  }
  return best;
}

// Softmax weight of `chosen` among the experts that its mask leaves.
float masked_softmax(std::span<const float> logits, int32_t chosen, int32_t excluded,
                     float jitter_epsilon) {
  const float top = logits[static_cast<size_t>(chosen)];
  float sum = 0.0F;
  for (int32_t e = 0; e < static_cast<int32_t>(logits.size()); ++e) {
    const float z = logits[static_cast<size_t>(e)];
    const float factor = std::max(std::fabs(z), top);
    const bool masked = (top - z) / factor > 2.0F * jitter_epsilon;
    if (e == excluded || masked) continue;
    sum += std::exp(z - top);
  }
  return 1.0F / sum;
}

}  // namespace

void sparsemixer_top2(std::span<const float> logits, float jitter_epsilon, std::span<int32_t> ids,
                      std::span<float> weights) noexcept {
  ids[0] = best_expert(logits, /*excluded=*/-1);
  weights[0] = masked_softmax(logits, ids[0], /*excluded=*/-1, jitter_epsilon);
  ids[1] = best_expert(logits, ids[0]);
  weights[1] = masked_softmax(logits, ids[1], ids[0], jitter_epsilon);
}

}  // namespace gantry
