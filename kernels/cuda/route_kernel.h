#pragma once

#include <math.h>

#include <cstdint>

#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/host_device.h"
#include "kernels/cuda/launch_shape.h"
#include "kernels/cuda/warp_ops.h"
#include "kernels/topk/topk_routing.h"

namespace gantry {

/// RoutingSpec without its callback: what a kernel can take by value.
struct DeviceRouting {
  RoutingMethod method;
  RouterScoring scoring;
  GroupScore group_score;
  bool select_on_logits;
  bool renormalize;
  int num_experts;
  int top_k;
  int num_groups;
  int topk_group;
  int num_zero_experts;
  int num_fused_shared_experts;
  float masked_score;
  float renorm_epsilon;
  float renorm_min;
  float scaling;
  float jitter_epsilon;
  float shared_weight;
};

/// topk_routing on the GPU: from logits to ids and weights, a warp a token, the same formulas (see
/// RoutingSpec) and the same order among equals. Sums are in another order than the host's.
///
/// With hash routing a token id outside the table gives expert 0 with weight NaN, as nobody can
/// throw here.
struct RouteTokens {
  static constexpr int kWarps = 4;

  DeviceRouting spec;
  const float* logits;            ///< [T, num_experts]
  const int32_t* token_ids;       ///< [T], kHash
  const float* correction_bias;   ///< [num_experts] or null
  const float* per_expert_scale;  ///< [num_experts - num_zero_experts] or null
  const int32_t* hash_table;      ///< [vocab, top_k], kHash
  int64_t vocab;
  int32_t* topk_ids;        ///< [T, top_k + num_fused_shared_experts]
  float* topk_weights;      ///< the same
  float* identity_weights;  ///< [T] where there are zero experts
  int64_t num_tokens;

  /// A warp's scratch: scores, selection scores, scores of groups, ids and weights, f32 each.
  [[nodiscard]] GANTRY_HD int64_t warp_words() const {
    return 2 * int64_t{spec.num_experts} + spec.num_groups + 2 * int64_t{spec.top_k};
  }
  [[nodiscard]] LaunchShape launch_shape() const {
    return {ceil_div(num_tokens, kWarps), kWarps * 32, kWarps * warp_words() * 4};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int warp = m.thread() / 32;
    const int64_t token = m.block() * kWarps + warp;
    if (token >= num_tokens) return;  // whole warps
    Warp w{m.thread() % 32, logits + token * spec.num_experts, nullptr, nullptr, nullptr, nullptr,
           nullptr};
    w.scores = reinterpret_cast<float*>(m.shared()) + warp * warp_words();
    w.selection = w.scores + spec.num_experts;
    w.groups = w.selection + spec.num_experts;
    w.weights = w.groups + spec.num_groups;
    w.ids = reinterpret_cast<int32_t*>(w.weights + spec.top_k);
    if (spec.method == RoutingMethod::kSparsemixer) {
      sparsemixer(m, w);
    } else {
      compute_scores(m, w);
      if (spec.method == RoutingMethod::kHash) {
        take_hash_ids(m, w, token_ids[token]);
      } else {
        compute_selection(m, w);
        select(m, w);
      }
      compute_weights(m, w);
    }
    if (w.lane == 0) finish(w, token);
  }

 private:
  struct Warp {
    int lane;
    const float* z;    // [num_experts]
    float* scores;     // [num_experts]
    float* selection;  // [num_experts]
    float* groups;     // [num_groups]
    float* weights;    // [top_k]
    int32_t* ids;      // [top_k]
  };

  // NaN selects like -infinity.
  GANTRY_DEVICE static float ranked(float score) { return score != score ? -INFINITY : score; }

  template <class Machine>
  GANTRY_DEVICE void compute_scores(Machine& m, const Warp& w) const {
    const int e_end = spec.num_experts;
    float sum = 1.0F;
    float top = 0.0F;
    if (spec.scoring == RouterScoring::kSoftmax) {
      top = -INFINITY;
      for (int e = w.lane; e < e_end; e += 32)
        top = w.z[e] > top ? w.z[e] : top;
      top = warp_max(m, top);
      float own = 0.0F;
      for (int e = w.lane; e < e_end; e += 32)
        own += expf(w.z[e] - top);
      sum = warp_sum(m, own);
    }
    for (int e = w.lane; e < e_end; e += 32)
      w.scores[e] = score(w.z[e], top, sum);
    m.sync_warp();
  }

  GANTRY_DEVICE float score(float z, float top, float sum) const {
    switch (spec.scoring) {
      case RouterScoring::kSoftmax:
        return expf(z - top) / sum;
      case RouterScoring::kSigmoid:
        return 1.0F / (1.0F + expf(-z));
      case RouterScoring::kSqrtSoftplus:
        return sqrtf((z > 0.0F ? z : 0.0F) + log1pf(expf(-fabsf(z))));
      case RouterScoring::kSoftmaxOverSelected:
        break;
    }
    return z;
  }

  template <class Machine>
  GANTRY_DEVICE void compute_selection(Machine& m, const Warp& w) const {
    const bool on_logits =
        spec.select_on_logits || spec.scoring == RouterScoring::kSoftmaxOverSelected;
    for (int e = w.lane; e < spec.num_experts; e += 32) {
      const float own = on_logits ? w.z[e] : w.scores[e];
      w.selection[e] = correction_bias == nullptr ? own : own + correction_bias[e];
    }
    m.sync_warp();
    if (spec.group_score == GroupScore::kMax || spec.group_score == GroupScore::kTopTwoSum)
      mask_groups(m, w);
  }

  template <class Machine>
  GANTRY_DEVICE void mask_groups(Machine& m, const Warp& w) const {
    const int size = spec.num_experts / spec.num_groups;
    for (int g = w.lane; g < spec.num_groups; g += 32) {
      float first = -INFINITY;
      float second = -INFINITY;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        const float value = w.selection[e];
        if (value > first) {
          second = first;
          first = value;
        } else if (value > second) {
          second = value;
        }
      }
      w.groups[g] = spec.group_score == GroupScore::kMax ? first : first + second;
    }
    m.sync_warp();
    // A group is kept if fewer than topk_group others come before it.
    for (int g = w.lane; g < spec.num_groups; g += 32) {
      int before = 0;
      for (int other = 0; other < spec.num_groups; ++other) {
        const Candidate a{ranked(w.groups[other]), other};
        if (other != g && beats(a, {ranked(w.groups[g]), g})) ++before;
      }
      if (before < spec.topk_group) continue;
      for (int e = g * size; e < (g + 1) * size; ++e)
        w.selection[e] = spec.masked_score;
    }
    m.sync_warp();
  }

  // The best of experts [begin, end) that come after `last` in the order of selection. Going on
  // from the one before needs no list of what is taken.
  template <class Machine>
  GANTRY_DEVICE Candidate next_best(Machine& m, const Warp& w, int begin, int end,
                                    const Candidate& last) const {
    Candidate own{0.0F, -1};
    for (int e = begin + w.lane; e < end; e += 32) {
      const Candidate c{ranked(w.selection[e]), e};
      if ((last.index < 0 || beats(last, c)) && beats(c, own)) own = c;
    }
    return warp_best(m, own);
  }

  template <class Machine>
  GANTRY_DEVICE void select(Machine& m, const Warp& w) const {
    const bool of_each = spec.group_score == GroupScore::kTopKOfEach;
    const int parts = of_each ? spec.num_groups : 1;
    const int size = spec.num_experts / parts;
    const int each = spec.top_k / parts;
    for (int part = 0; part < parts; ++part) {
      Candidate last{0.0F, -1};
      for (int i = 0; i < each; ++i) {
        last = next_best(m, w, part * size,
                         part == parts - 1 ? spec.num_experts : (part + 1) * size, last);
        if (w.lane == 0) w.ids[part * each + i] = last.index;
      }
    }
    m.sync_warp();
    if (!of_each) return;
    // Best first, over all groups: each id goes to the place that the number of better ones says.
    int32_t own_id[kMaxIdsOfLane] = {};
    int place[kMaxIdsOfLane] = {};
    GANTRY_UNROLL
    for (int own = 0; own < kMaxIdsOfLane; ++own) {  // unrolled: arrays of registers
      const int i = w.lane + 32 * own;
      if (i >= spec.top_k) continue;
      own_id[own] = w.ids[i];
      place[own] = place_in_order(w, i);
    }
    m.sync_warp();
    GANTRY_UNROLL
    for (int own = 0; own < kMaxIdsOfLane; ++own)
      if (w.lane + 32 * own < spec.top_k) w.ids[place[own]] = own_id[own];
    m.sync_warp();
  }

  // How many of the ids come before the i-th.
  GANTRY_DEVICE int place_in_order(const Warp& w, int i) const {
    const Candidate own{ranked(w.selection[w.ids[i]]), w.ids[i]};
    int before = 0;
    GANTRY_NO_UNROLL
    for (int j = 0; j < spec.top_k; ++j)
      before += j != i && beats({ranked(w.selection[w.ids[j]]), w.ids[j]}, own) ? 1 : 0;
    return before;
  }

  template <class Machine>
  GANTRY_DEVICE void take_hash_ids(Machine& m, const Warp& w, int32_t token_id) const {
    const bool known = token_id >= 0 && token_id < vocab;
    for (int i = w.lane; i < spec.top_k; i += 32)
      w.ids[i] = known ? hash_table[token_id * int64_t{spec.top_k} + i] : -1;
    m.sync_warp();
  }

  template <class Machine>
  GANTRY_DEVICE void compute_weights(Machine& m, const Warp& w) const {
    int nans = 0;
    for (int e = w.lane; e < spec.num_experts; e += 32)
      nans += w.z[e] != w.z[e] ? 1 : 0;
    const bool poisoned = warp_sum(m, nans) > 0;
    if (w.lane == 0) weigh(w, poisoned);
    m.sync_warp();
  }

  // One lane: top_k is small, and the order of the sums is the host's.
  GANTRY_DEVICE void weigh(const Warp& w, bool poisoned) const {
    for (int i = 0; i < spec.top_k; ++i) {
      poisoned = poisoned || w.ids[i] < 0;
      if (w.ids[i] < 0) w.ids[i] = 0;
      w.weights[i] = w.scores[w.ids[i]];
    }
    if (spec.scoring == RouterScoring::kSoftmaxOverSelected) {
      float top = -INFINITY;
      for (int i = 0; i < spec.top_k; ++i)
        top = w.weights[i] > top ? w.weights[i] : top;
      float sum = 0.0F;
      for (int i = 0; i < spec.top_k; ++i)
        sum += w.weights[i] = expf(w.weights[i] - top);
      for (int i = 0; i < spec.top_k; ++i)
        w.weights[i] /= sum;
    }
    if (poisoned) {
      for (int i = 0; i < spec.top_k; ++i)
        w.weights[i] = bits_to_f32(0x7fc00000u);
    }
    if (!spec.renormalize) return;
    float sum = spec.renorm_epsilon;
    for (int i = 0; i < spec.top_k; ++i)
      sum += w.weights[i];
    if (sum < spec.renorm_min) sum = spec.renorm_min;
    for (int i = 0; i < spec.top_k; ++i)
      w.weights[i] /= sum;
  }

  // Phi-3.5-MoE: two argmaxes, each with a softmax over what its threshold leaves (sparsemixer.h).
  template <class Machine>
  GANTRY_DEVICE void sparsemixer(Machine& m, const Warp& w) const {
    int excluded = -1;
    for (int i = 0; i < 2; ++i) {
      Candidate own{-INFINITY, -1};
      for (int e = w.lane; e < spec.num_experts; e += 32) {
        const Candidate c{w.z[e], e};
        if (e != excluded && w.z[e] > -INFINITY && beats(c, own)) own = c;
      }
      const Candidate best = warp_best(m, own);
      const int chosen = best.index >= 0 ? best.index : (excluded == 0 ? 1 : 0);
      const float top = w.z[chosen];
      float sum = 0.0F;
      for (int e = w.lane; e < spec.num_experts; e += 32) {
        const float magnitude = fabsf(w.z[e]);
        // As std::max(magnitude, top) has it with NaN.
        const float factor = magnitude < top ? top : magnitude;
        const bool masked = (top - w.z[e]) / factor > 2.0F * spec.jitter_epsilon;
        if (e != excluded && !masked) sum += expf(w.z[e] - top);
      }
      sum = warp_sum(m, sum);
      if (w.lane == 0) {
        w.ids[i] = chosen;
        w.weights[i] = 1.0F / sum;
      }
      excluded = chosen;
    }
    m.sync_warp();
  }

  GANTRY_DEVICE void finish(const Warp& w, int64_t token) const {
    const int slots = spec.top_k + spec.num_fused_shared_experts;
    const int first_zero = spec.num_experts - spec.num_zero_experts;
    float identity = 0.0F;
    for (int i = 0; i < slots; ++i) {
      int32_t id = 0;
      float weight = spec.shared_weight;
      if (i < spec.top_k) {
        id = w.ids[i];
        weight = w.weights[i] * spec.scaling;
        if (id >= first_zero) {
          identity += weight;
          id = -1;
          weight = 0.0F;
        } else if (per_expert_scale != nullptr) {
          weight *= per_expert_scale[id];
        }
      } else {
        id = first_zero + i - spec.top_k;
      }
      topk_ids[token * slots + i] = id;
      topk_weights[token * slots + i] = weight;
    }
    if (spec.num_zero_experts > 0) identity_weights[token] = identity;
  }

 public:
  /// Ids that one lane sorts with kTopKOfEach: top_k is at most 32 times that.
  static constexpr int kMaxIdsOfLane = 8;
};

}  // namespace gantry
