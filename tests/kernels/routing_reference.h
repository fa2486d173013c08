#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/topk/topk_routing.h"

namespace gantry::test {

/// One token's routing, computed by the formulas of `RoutingSpec` in long double.
struct RoutedToken {
  std::vector<int32_t> ids;
  std::vector<long double> weights;
  long double identity = 0;
  /// The closest call that selection made, relative: two different candidates this near may
  /// rightly be taken in either order by f32. Exact ties do not count.
  long double margin = std::numeric_limits<long double>::infinity();
};

inline std::vector<long double> reference_scores(RouterScoring scoring, std::span<const float> z) {
  std::vector<long double> scores(z.begin(), z.end());
  if (scoring == RouterScoring::kSigmoid) {
    for (long double& s : scores)
      s = 1 / (1 + std::exp(-s));
  }
  if (scoring == RouterScoring::kSqrtSoftplus) {
    for (long double& s : scores)
      s = std::sqrt(std::log1p(std::exp(s)));
  }
  if (scoring == RouterScoring::kSoftmax) {
    long double sum = 0;
    for (long double& s : scores)
      sum += s = std::exp(s);
    for (long double& s : scores)
      s /= sum;
  }
  return scores;
}

/// Takes the `count` largest of values[begin, end) by looking for the largest again and again; the
/// first among equals.
inline std::vector<int32_t> take_largest(const std::vector<long double>& values, int begin, int end,
                                         int count, long double& margin) {
  std::vector<int32_t> taken;
  std::vector<bool> gone(values.size(), false);
  for (int i = 0; i < count; ++i) {
    int best = -1;
    for (int e = begin; e < end; ++e) {
      const auto at = static_cast<size_t>(e);
      if (!gone[at] && (best < 0 || values[at] > values[static_cast<size_t>(best)])) best = e;
    }
    gone[static_cast<size_t>(best)] = true;
    taken.push_back(best);
    for (int e = begin; e < end; ++e) {
      const long double a = values[static_cast<size_t>(best)];
      const long double b = values[static_cast<size_t>(e)];
      if (gone[static_cast<size_t>(e)] || a == b || std::isinf(b)) continue;
      const long double larger = std::fmax(std::fabs(a), std::fabs(b));
      // Scores of large negative logits pass through exp, which underflows in f32.
      margin = std::fmin(margin, larger < 1e-18L ? 0.0L : (a - b) / larger);
    }
  }
  return taken;
}

/// What experts outside the chosen groups are selected by becomes `masked_score`.
inline void mask_groups(const RoutingSpec& spec, std::vector<long double>& u, long double& margin) {
  const int size = spec.num_experts / spec.num_groups;
  std::vector<long double> group_scores;
  for (int g = 0; g < spec.num_groups; ++g) {
    const int summed = spec.group_score == GroupScore::kMax ? 1 : 2;
    long double unused = 1;
    long double score = 0;
    for (const int32_t e : take_largest(u, g * size, (g + 1) * size, summed, unused)) {
      score += u[static_cast<size_t>(e)];
    }
    group_scores.push_back(score);
  }
  std::vector<bool> kept(group_scores.size(), false);
  for (const int32_t g : take_largest(group_scores, 0, spec.num_groups, spec.topk_group, margin)) {
    kept[static_cast<size_t>(g)] = true;
  }
  for (int e = 0; e < spec.num_experts; ++e) {
    if (!kept[static_cast<size_t>(e / size)]) u[static_cast<size_t>(e)] = spec.masked_score;
  }
}

inline std::vector<int32_t> reference_select(const RoutingSpec& spec, const RoutingTensors& tensors,
                                             std::span<const float> z,
                                             const std::vector<long double>& scores,
                                             long double& margin) {
  std::vector<long double> u = scores;
  if (spec.select_on_logits) u.assign(z.begin(), z.end());
  for (size_t e = 0; e < tensors.correction_bias.size(); ++e)
    u[e] += tensors.correction_bias[e];
  if (spec.group_score == GroupScore::kTopKOfEach) {
    std::vector<long double> only(u.size(), -std::numeric_limits<long double>::infinity());
    const int size = spec.num_experts / spec.num_groups;
    for (int g = 0; g < spec.num_groups; ++g) {
      for (const int32_t e :
           take_largest(u, g * size, (g + 1) * size, spec.top_k / spec.num_groups, margin)) {
        only[static_cast<size_t>(e)] = u[static_cast<size_t>(e)];
      }
    }
    u = only;
  } else if (spec.group_score != GroupScore::kNone) {
    mask_groups(spec, u, margin);
  }
  return take_largest(u, 0, spec.num_experts, spec.top_k, margin);
}

/// Routes one token. With `hash_ids` those experts are taken.
inline RoutedToken reference_route(const RoutingSpec& spec, const RoutingTensors& tensors,
                                   std::span<const float> z,
                                   std::span<const int32_t> hash_ids = {}) {
  RoutedToken token;
  const std::vector<long double> scores = reference_scores(spec.scoring, z);
  if (hash_ids.empty()) {
    token.ids = reference_select(spec, tensors, z, scores, token.margin);
  } else {
    token.ids.assign(hash_ids.begin(), hash_ids.end());
  }
  for (const int32_t id : token.ids)
    token.weights.push_back(scores[static_cast<size_t>(id)]);
  if (spec.scoring == RouterScoring::kSoftmaxOverSelected) {
    long double sum = 0;
    for (long double& w : token.weights)
      sum += w = std::exp(w);
    for (long double& w : token.weights)
      w /= sum;
  }
  if (spec.renormalize) {
    long double sum = spec.renorm_epsilon;
    for (const long double w : token.weights)
      sum += w;
    sum = std::fmax(sum, static_cast<long double>(spec.renorm_min));
    for (long double& w : token.weights)
      w /= sum;
  }
  for (size_t i = 0; i < token.ids.size(); ++i) {
    token.weights[i] *= spec.scaling;
    if (token.ids[i] >= spec.num_experts - spec.num_zero_experts) {
      token.identity += token.weights[i];
      token.weights[i] = 0;
      token.ids[i] = -1;
    } else if (!tensors.per_expert_scale.empty()) {
      token.weights[i] *= tensors.per_expert_scale[static_cast<size_t>(token.ids[i])];
    }
  }
  for (int j = 0; j < spec.num_fused_shared_experts; ++j) {
    token.ids.push_back(spec.num_experts - spec.num_zero_experts + j);
    token.weights.push_back(spec.shared_weight);
  }
  return token;
}

}  // namespace gantry::test
