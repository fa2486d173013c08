#include "kernels/topk/topk_routing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/topk/sparsemixer.h"

// One token at a time: scores, selection scores, groups, top-k, weights. The scratch of a token is
// the caller's.

namespace gantry {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// Strict order of candidates: higher score first, then lower index; NaN below everything.
struct ByScore {
  const float* scores;
  bool operator()(int32_t a, int32_t b) const {
    const float x = std::isnan(scores[a]) ? kNegativeInfinity : scores[a];
    const float y = std::isnan(scores[b]) ? kNegativeInfinity : scores[b];
    return x != y ? x > y : a < b;
  }
};

class TokenRouter {
 public:
  TokenRouter(const RoutingSpec& spec, const RoutingTensors& tensors, TopkScratch& scratch)
      : spec_(spec),
        tensors_(tensors),
        scores_(scratch.scores),
        selection_(scratch.selection),
        order_(scratch.order),
        group_scores_(scratch.group_scores),
        group_order_(scratch.group_order) {
    scratch.reserve(spec);
  }

  // Ids and weights [top_k] of one token, before zero experts and fused shared experts.
  void route(std::span<const float> logits, std::span<const int32_t> hash_ids,
             std::span<int32_t> ids, std::span<float> weights) {
    compute_scores(logits);
    if (spec_.method == RoutingMethod::kHash) {
      std::copy(hash_ids.begin(), hash_ids.end(), ids.begin());
    } else {
      compute_selection_scores(logits);
      select(ids);
    }
    compute_weights(logits, ids, weights);
  }

 private:
  void compute_scores(std::span<const float> z) {
    switch (spec_.scoring) {
      case RouterScoring::kSoftmax: {
        float top = kNegativeInfinity;
        for (const float value : z)
          top = std::max(top, value);
        float sum = 0.0F;
        for (size_t e = 0; e < z.size(); ++e)
          sum += scores_[e] = std::exp(z[e] - top);
        for (float& score : scores_)
          score /= sum;
        break;
      }
      case RouterScoring::kSigmoid:
        for (size_t e = 0; e < z.size(); ++e)
          scores_[e] = 1.0F / (1.0F + std::exp(-z[e]));
        break;
      case RouterScoring::kSqrtSoftplus:
        // log(1 + e^z) = max(z, 0) + log1p(e^-|z|) does not overflow.
        for (size_t e = 0; e < z.size(); ++e) {
          scores_[e] =
              std::sqrt((z[e] > 0.0F ? z[e] : 0.0F) + std::log1p(std::exp(-std::fabs(z[e]))));
        }
        break;
      case RouterScoring::kSoftmaxOverSelected:
        std::copy(z.begin(), z.end(), scores_.begin());
        break;
    }
  }

  void compute_selection_scores(std::span<const float> z) {
    const bool on_logits =
        spec_.select_on_logits || spec_.scoring == RouterScoring::kSoftmaxOverSelected;
    if (on_logits) {
      std::copy(z.begin(), z.end(), selection_.begin());
    } else {
      selection_ = scores_;
    }
    for (size_t e = 0; e < tensors_.correction_bias.size(); ++e) {
      selection_[e] += tensors_.correction_bias[e];
    }
    const bool drops_groups =
        spec_.group_score == GroupScore::kMax || spec_.group_score == GroupScore::kTopTwoSum;
    if (drops_groups) mask_groups();
  }

  // Gives experts outside the best groups the masked score.
  void mask_groups() {
    const auto num_groups = static_cast<size_t>(spec_.num_groups);
    const size_t size = selection_.size() / num_groups;
    std::iota(group_order_.begin(), group_order_.end(), 0);
    for (size_t g = 0; g < num_groups; ++g) {
      float first = kNegativeInfinity;
      float second = kNegativeInfinity;
      for (size_t e = g * size; e < (g + 1) * size; ++e) {
        const float value = selection_[e];
        if (value > first) {
          second = first;
          first = value;
        } else if (value > second) {
          second = value;
        }
      }
      group_scores_[g] = spec_.group_score == GroupScore::kMax ? first : first + second;
    }
    std::sort(group_order_.begin(), group_order_.end(), ByScore{group_scores_.data()});
    for (auto i = static_cast<size_t>(spec_.topk_group); i < num_groups; ++i) {
      const auto g = static_cast<size_t>(group_order_[i]);
      std::fill_n(selection_.begin() + static_cast<ptrdiff_t>(g * size), size, spec_.masked_score);
    }
  }

  void select(std::span<int32_t> ids) {
    if (spec_.group_score == GroupScore::kTopKOfEach) {
      const ByScore by_score{selection_.data()};
      std::iota(order_.begin(), order_.end(), 0);
      const auto size = static_cast<ptrdiff_t>(order_.size()) / spec_.num_groups;
      const ptrdiff_t each = static_cast<ptrdiff_t>(ids.size()) / spec_.num_groups;
      for (ptrdiff_t g = 0; g < spec_.num_groups; ++g) {
        const auto begin = order_.begin() + g * size;
        std::partial_sort(begin, begin + each, begin + size, by_score);
        std::copy_n(begin, each, ids.begin() + g * each);
      }
      std::sort(ids.begin(), ids.end(), by_score);
      return;
    }
    insert_best(ids);
  }

  // The best of all by insertion: most candidates are below the last one kept. Of equal scores the
  // lower index stands first, because it came first.
  void insert_best(std::span<int32_t> ids) {
    const auto score_of = [&](int32_t e) {
      const float score = selection_[static_cast<size_t>(e)];
      return std::isnan(score) ? kNegativeInfinity : score;
    };
    size_t kept = 0;
    float last = kNegativeInfinity;  // of the last one, once all places are taken
    for (int32_t e = 0; e < spec_.num_experts; ++e) {
      const float score = score_of(e);
      if (kept == ids.size() && !(score > last)) continue;
      size_t place = kept < ids.size() ? kept++ : kept - 1;
      for (; place > 0 && score > score_of(ids[place - 1]); --place)
        ids[place] = ids[place - 1];
      ids[place] = e;
      last = score_of(ids[kept - 1]);
    }
  }

  void compute_weights(std::span<const float> z, std::span<const int32_t> ids,
                       std::span<float> weights) {
    const size_t k = ids.size();
    for (size_t i = 0; i < k; ++i)
      weights[i] = scores_[static_cast<size_t>(ids[i])];
    if (spec_.scoring == RouterScoring::kSoftmaxOverSelected) {
      float top = kNegativeInfinity;
      for (const float value : weights)
        top = std::max(top, value);
      float sum = 0.0F;
      for (float& value : weights)
        sum += value = std::exp(value - top);
      for (float& value : weights)
        value /= sum;
    }
    // A token with a NaN logit has no meaning: its weights say so, whichever way it was selected.
    const bool poisoned = std::any_of(z.begin(), z.end(), [](float v) { return std::isnan(v); });
    if (poisoned)
      std::fill(weights.begin(), weights.end(), std::numeric_limits<float>::quiet_NaN());
    if (spec_.renormalize) {
      float sum = spec_.renorm_epsilon;
      for (const float value : weights)
        sum += value;
      if (sum < spec_.renorm_min) sum = spec_.renorm_min;
      for (float& value : weights)
        value /= sum;
    }
  }

  const RoutingSpec& spec_;
  const RoutingTensors& tensors_;
  std::vector<float>& scores_;
  std::vector<float>& selection_;
  std::vector<int32_t>& order_;
  std::vector<float>& group_scores_;
  std::vector<int32_t>& group_order_;
};

// What comes after selection, whatever the method: scaling, identity experts, fused shared experts.
void finish_token(const RoutingSpec& spec, const RoutingTensors& tensors, std::span<int32_t> ids,
                  std::span<float> weights, float* identity_weight) {
  const auto k = static_cast<size_t>(spec.top_k);
  const int32_t first_zero = spec.num_experts - spec.num_zero_experts;
  float identity = 0.0F;
  for (size_t i = 0; i < k; ++i) {
    weights[i] *= spec.scaling;
    if (ids[i] >= first_zero) {
      identity += weights[i];
      ids[i] = -1;
      weights[i] = 0.0F;
    } else if (!tensors.per_expert_scale.empty() && ids[i] >= 0) {
      weights[i] *= tensors.per_expert_scale[static_cast<size_t>(ids[i])];
    }
  }
  if (spec.num_zero_experts > 0) *identity_weight = identity;
  for (size_t i = k; i < ids.size(); ++i) {
    ids[i] = first_zero + static_cast<int32_t>(i - k);
    weights[i] = spec.shared_weight;
  }
}

std::span<const int32_t> hash_ids(const RoutingSpec& spec, const RoutingTensors& tensors,
                                  int32_t token_id) {
  const auto k = static_cast<size_t>(spec.top_k);
  const auto vocab = static_cast<int32_t>(tensors.hash_table.size() / k);
  GANTRY_CHECK(token_id >= 0 && token_id < vocab, ErrorCode::kInvalidArgument,
               "hash routing: expected a token id below {}, found {}", vocab, token_id);
  const auto ids = tensors.hash_table.subspan(static_cast<size_t>(token_id) * k, k);
  for (const int32_t id : ids) {
    GANTRY_CHECK(id >= 0 && id < spec.num_experts, ErrorCode::kInvalidArgument,
                 "hash routing: token id {}: expected expert ids below {}, found {}", token_id,
                 spec.num_experts, id);
  }
  return ids;
}

}  // namespace

void TopkScratch::reserve(const RoutingSpec& spec) {
  const auto experts = static_cast<size_t>(spec.num_experts);
  scores.resize(experts);
  selection.resize(experts);
  order.resize(experts);
  const size_t groups =
      spec.group_score == GroupScore::kNone ? 0 : static_cast<size_t>(spec.num_groups);
  group_scores.resize(groups);
  group_order.resize(groups);
}

void validate(const RoutingSpec& spec, const RoutingTensors& tensors) {
  const auto check = [](bool ok, std::string_view what, int64_t found) {
    GANTRY_CHECK(ok, ErrorCode::kInvalidArgument, "routing: {}, found {}", what, found);
  };
  check(spec.num_experts >= 1, "num_experts: expected at least 1", spec.num_experts);
  check(spec.top_k >= 1 && spec.top_k <= spec.num_experts,
        "top_k: expected 1 to the number of experts", spec.top_k);
  check(spec.num_zero_experts >= 0 && spec.num_zero_experts < spec.num_experts,
        "num_zero_experts: expected fewer than num_experts", spec.num_zero_experts);
  check(spec.num_fused_shared_experts >= 0, "num_fused_shared_experts: expected at least 0",
        spec.num_fused_shared_experts);
  check(spec.method != RoutingMethod::kSparsemixer || (spec.top_k == 2 && spec.num_experts >= 2),
        "sparsemixer: expected top_k 2", spec.top_k);
  check(spec.method != RoutingMethod::kCustom || spec.custom != nullptr,
        "custom: expected a callback", 0);
  if (spec.group_score != GroupScore::kNone) {
    check(spec.num_groups >= 1 && spec.num_experts % spec.num_groups == 0,
          "num_groups: expected a divisor of the number of experts", spec.num_groups);
    check(spec.topk_group >= 1 && spec.topk_group <= spec.num_groups,
          "topk_group: expected 1 to num_groups", spec.topk_group);
    const bool each = spec.group_score == GroupScore::kTopKOfEach;
    check(!each || spec.top_k % spec.num_groups == 0,
          "top_k: expected a multiple of num_groups for a top-k of each group", spec.top_k);
    check(each || spec.top_k <= spec.topk_group * (spec.num_experts / spec.num_groups),
          "top_k: expected no more than the experts of the kept groups", spec.top_k);
    check(spec.group_score != GroupScore::kTopTwoSum || spec.num_experts / spec.num_groups >= 2,
          "num_groups: expected groups of at least 2 experts", spec.num_groups);
  }
  const auto experts = static_cast<size_t>(spec.num_experts);
  check(tensors.correction_bias.empty() || tensors.correction_bias.size() == experts,
        "correction_bias: expected one value an expert",
        static_cast<int64_t>(tensors.correction_bias.size()));
  check(tensors.per_expert_scale.empty() ||
            tensors.per_expert_scale.size() == experts - static_cast<size_t>(spec.num_zero_experts),
        "per_expert_scale: expected one value an expert",
        static_cast<int64_t>(tensors.per_expert_scale.size()));
  check(spec.method != RoutingMethod::kHash ||
            (!tensors.hash_table.empty() &&
             tensors.hash_table.size() % static_cast<size_t>(spec.top_k) == 0),
        "hash_table: expected [vocab, top_k] ids", static_cast<int64_t>(tensors.hash_table.size()));
}

void topk_routing(const RoutingSpec& spec, const RoutingTensors& tensors,
                  std::span<const float> logits, std::span<const int32_t> token_ids,
                  std::span<int32_t> topk_ids, std::span<float> topk_weights,
                  std::span<float> identity_weights, TopkScratch& scratch) {
  validate(spec, tensors);
  const auto experts = static_cast<size_t>(spec.num_experts);
  const auto slots = static_cast<size_t>(spec.num_slots());
  const auto k = static_cast<size_t>(spec.top_k);
  const size_t num_tokens = logits.size() / experts;
  const auto check = [&](bool ok, std::string_view what, size_t found) {
    GANTRY_CHECK(ok, ErrorCode::kInvalidArgument, "topk_routing: {} for {} tokens: found {} values",
                 what, num_tokens, found);
  };
  check(logits.size() == num_tokens * experts, "logits", logits.size());
  check(topk_ids.size() == num_tokens * slots, "topk_ids", topk_ids.size());
  check(topk_weights.size() == num_tokens * slots, "topk_weights", topk_weights.size());
  check(spec.method != RoutingMethod::kHash || token_ids.size() == num_tokens, "token_ids",
        token_ids.size());
  check(spec.num_zero_experts == 0 || identity_weights.size() == num_tokens, "identity_weights",
        identity_weights.size());

  std::vector<int32_t> custom_ids;
  std::vector<float> custom_weights;
  if (spec.method == RoutingMethod::kCustom) {
    custom_ids.resize(num_tokens * k);
    custom_weights.resize(num_tokens * k);
    spec.custom(logits, static_cast<int64_t>(num_tokens), custom_ids, custom_weights);
    for (const int32_t id : custom_ids) {
      GANTRY_CHECK(id >= -1 && id < spec.num_experts, ErrorCode::kInvalidArgument,
                   "custom routing: expected expert ids from -1 to {}, found {}",
                   spec.num_experts - 1, id);
    }
  }
  TokenRouter router(spec, tensors, scratch);
  for (size_t t = 0; t < num_tokens; ++t) {
    const auto z = logits.subspan(t * experts, experts);
    const auto ids = topk_ids.subspan(t * slots, slots);
    const auto weights = topk_weights.subspan(t * slots, slots);
    switch (spec.method) {
      case RoutingMethod::kTopK:
        router.route(z, {}, ids.first(k), weights.first(k));
        break;
      case RoutingMethod::kHash:
        router.route(z, hash_ids(spec, tensors, token_ids[t]), ids.first(k), weights.first(k));
        break;
      case RoutingMethod::kSparsemixer:
        sparsemixer_top2(z, spec.jitter_epsilon, ids.first(2), weights.first(2));
        break;
      case RoutingMethod::kCustom:
        std::copy_n(custom_ids.begin() + static_cast<ptrdiff_t>(t * k), k, ids.begin());
        std::copy_n(custom_weights.begin() + static_cast<ptrdiff_t>(t * k), k, weights.begin());
        break;
    }
    finish_token(spec, tensors, ids, weights,
                 spec.num_zero_experts > 0 ? &identity_weights[t] : nullptr);
  }
}

}  // namespace gantry
