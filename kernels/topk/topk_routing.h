#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// How logits z become scores s, per token.
enum class RouterScoring : uint8_t {
  kSoftmax,              ///< softmax over all experts
  kSigmoid,              ///< 1 / (1 + exp(-z))
  kSqrtSoftplus,         ///< sqrt(log(1 + exp(z))), DeepSeek-V4
  kSoftmaxOverSelected,  ///< selects on z, then softmax over the selected z (Granite, gpt-oss)
};

enum class RoutingMethod : uint8_t {
  kTopK,         ///< top-k of the (biased, group-masked) scores
  kSparsemixer,  ///< Phi-3.5-MoE; top_k must be 2
  kHash,    ///< ids come from a table indexed by token id, weights from the scores at those ids
  kCustom,  ///< ids and weights come from a callback
};

/// How a group of experts is scored when only some groups take part.
enum class GroupScore : uint8_t {
  kNone,        ///< no groups
  kMax,         ///< the group's best selection score (DeepSeek-V2)
  kTopTwoSum,   ///< sum of the group's two best selection scores (DeepSeek-V3)
  kTopKOfEach,  ///< no group is dropped: the top (top_k / num_groups) of each group (InternS1-Pro)
};

/// Everything that fixes the arithmetic of a router, apart from its tensors. A plain value.
///
/// With scores s, correction bias b, per-expert scale p and scaling factor c (sections of the
/// layer's config): u = select_on_logits ? z : s, plus b where there is one; excluded groups take
/// `masked_score`; ids = top_k of u, lowest id first among equals, listed by descending u;
/// w = s[ids]; if renormalize: w /= max(sum(w) + renorm_epsilon, renorm_min);
/// w = w * c * p[ids].
struct RoutingSpec {
  RoutingMethod method = RoutingMethod::kTopK;
  RouterScoring scoring = RouterScoring::kSoftmax;
  int num_experts = 0;  ///< width of the logits: routed experts and zero experts
  int top_k = 0;
  /// Select on the logits instead of the scores: same order in exact arithmetic, but saturated
  /// scores do not tie (Llama 4). The bias, where there is one, is added to the logits.
  bool select_on_logits = false;
  GroupScore group_score = GroupScore::kNone;
  int num_groups = 1;
  int topk_group = 1;
  float masked_score = 0.0F;  ///< what experts of excluded groups score: 0 or -infinity
  bool renormalize = false;
  float renorm_epsilon = 0.0F;  ///< added to the sum
  float renorm_min = 0.0F;      ///< lower bound of the sum
  float scaling = 1.0F;
  float jitter_epsilon = 0.01F;  ///< sparsemixer only
  /// Ids >= num_experts - num_zero_experts are identity experts (LongCat): they are reported as id
  /// -1 with weight 0, and their weights are summed into `identity_weights`.
  int num_zero_experts = 0;
  /// Fused shared experts: the n ids after the last routed expert (num_experts - num_zero_experts
  /// and on) are appended to every token with weight `shared_weight`.
  int num_fused_shared_experts = 0;
  float shared_weight = 1.0F;
  /// kCustom: fills ids [T, top_k] and weights [T, top_k] from logits [T, num_experts].
  std::function<void(std::span<const float> logits, int64_t num_tokens, std::span<int32_t> ids,
                     std::span<float> weights)>
      custom;

  /// Columns of the outputs: top_k + num_fused_shared_experts.
  [[nodiscard]] int num_slots() const noexcept { return top_k + num_fused_shared_experts; }
};

/// The tensors of a router that selection reads. Empty spans: not there. Not owned.
struct RoutingTensors {
  std::span<const float> correction_bias;   // [num_experts]
  std::span<const float> per_expert_scale;  // [num_experts - num_zero_experts]
  std::span<const int32_t> hash_table;      // [vocab, top_k], kHash only
};

/// Checks a spec for sense: sizes, groups, the combinations that the formulas define.
/// @throws Error kInvalidArgument naming the field
void validate(const RoutingSpec& spec, const RoutingTensors& tensors);

/// What one token's selection works on, kept between calls so that routing does not allocate.
struct TopkScratch {
  std::vector<float> scores;
  std::vector<float> selection;
  std::vector<int32_t> order;
  std::vector<float> group_scores;
  std::vector<int32_t> group_order;

  /// Makes room for a spec; calls with it then do not allocate.
  void reserve(const RoutingSpec& spec);
};

/// Routes tokens: from logits to the experts that each token takes and their weights.
///
/// All arithmetic is f32. A token's result does not depend on the other tokens. NaN logits select
/// like -infinity and give NaN weights, never an id out of range.
///
/// @param logits    [T, num_experts] f32
/// @param token_ids [T] int32, only read for kHash (else may be empty)
/// @param topk_ids      [T, num_slots()] int32, written
/// @param topk_weights  [T, num_slots()] f32, written
/// @param identity_weights [T] f32, written where num_zero_experts > 0 (else may be empty)
/// @param scratch       any; only kCustom allocates besides it
/// @throws Error kInvalidArgument if a size does not fit, or a hash-table id is out of range
/// @source the router formulas of vLLM 0.32 and of the Transformers 5.17 modules of each family
void topk_routing(const RoutingSpec& spec, const RoutingTensors& tensors,
                  std::span<const float> logits, std::span<const int32_t> token_ids,
                  std::span<int32_t> topk_ids, std::span<float> topk_weights,
                  std::span<float> identity_weights, TopkScratch& scratch);

}  // namespace gantry
