// GGUF files: one spelling for all architectures, and a table of what each of them computes where
// its metadata do not say so. The metadata come as the config of gguf_config.h.

#include "loader/gguf_family.h"

#include <algorithm>
#include <array>
#include <optional>

#include "kernels/base/check.h"
#include "loader/family_config_parts.h"
#include "loader/gguf_config.h"

namespace gantry {
namespace {

using family_config::kMaxExperts;
using family_config::kMaxSize;

enum class Shared : uint8_t {
  kNone,
  kCount,        ///< expert_shared_count experts as wide as the routed ones
  kWidth,        ///< one, expert_shared_feed_forward_length wide; none where the key is missing
  kGatedWidth,   ///< the same, always there, its output times sigmoid(x . gate)
  kExpertWidth,  ///< one as wide as a routed expert
};

struct Architecture {
  std::string_view model_type;
  /// Where expert_gating_func is missing; nothing: then the file is refused.
  std::optional<RouterScoring> scoring;
  bool renormalize;  ///< where expert_weights_norm is missing
  Shared shared;
};

// llama.cpp's graphs, and the models' own definitions where they say more. A new architecture is a
// row. Not here: those whose routing llama.cpp approximates (phimoe), or that have more than a MoE
// block (grok, arctic, gemma4).
constexpr std::array<Architecture, 17> kArchitectures = {{
    {"gguf.llama", RouterScoring::kSoftmax, true, Shared::kNone},
    {"gguf.qwen2moe", RouterScoring::kSoftmax, false, Shared::kGatedWidth},
    {"gguf.qwen3moe", RouterScoring::kSoftmax, true, Shared::kNone},
    {"gguf.qwen3vlmoe", RouterScoring::kSoftmax, true, Shared::kNone},
    {"gguf.qwen3next", RouterScoring::kSoftmax, true, Shared::kGatedWidth},
    {"gguf.qwen35moe", RouterScoring::kSoftmax, true, Shared::kGatedWidth},
    {"gguf.olmoe", RouterScoring::kSoftmax, false, Shared::kNone},
    {"gguf.dbrx", RouterScoring::kSoftmax, true, Shared::kNone},
    {"gguf.deepseek2", RouterScoring::kSoftmax, false, Shared::kCount},
    {"gguf.glm4moe", RouterScoring::kSigmoid, false, Shared::kCount},
    {"gguf.dots1", std::nullopt, false, Shared::kCount},
    {"gguf.granitemoe", RouterScoring::kSoftmax, true, Shared::kWidth},
    {"gguf.ernie4_5-moe", RouterScoring::kSoftmax, true, Shared::kWidth},
    {"gguf.hunyuan-moe", RouterScoring::kSoftmax, true, Shared::kWidth},
    {"gguf.minimax-m2", std::nullopt, true, Shared::kNone},
    {"gguf.llama4", RouterScoring::kSigmoid, false, Shared::kExpertWidth},
    {"gguf.gpt-oss", RouterScoring::kSoftmaxOverSelected, false, Shared::kNone},
}};

const Architecture& architecture_of(const ConfigReader& config) {
  const std::string type = config.string_or({"model_type"}, "");
  for (const Architecture& row : kArchitectures) {
    if (row.model_type == type) return row;
  }
  fail(ErrorCode::kUnsupported, "{}: model_type '{}' is not a GGUF architecture", config.source(),
       type);
}

RouterScoring scoring_of(const ConfigReader& config, const Architecture& row) {
  const int64_t function = config.int_or({"expert_gating_func"}, 0);
  switch (function) {
    case 0:
      GANTRY_CHECK(row.scoring.has_value(), ErrorCode::kFormat,
                   "{}: expert_gating_func: expected it, as {} models differ in it, found nothing",
                   config.source(), row.model_type);
      return *row.scoring;
    case 1:
      return RouterScoring::kSoftmax;
    case 2:
      return RouterScoring::kSigmoid;
    case 3:
      return RouterScoring::kSoftmaxOverSelected;
    case 4:
      return RouterScoring::kSqrtSoftplus;
    default:
      fail(ErrorCode::kUnsupported, "{}: expert_gating_func: expected 1 to 4, found {}",
           config.source(), function);
  }
}

void read_routing(const ConfigReader& config, const Architecture& row, MoeLayerSpec& layer) {
  RoutingSpec& routing = layer.routing;
  routing.scoring = scoring_of(config, row);
  routing.renormalize = config.bool_or({"expert_weights_norm"}, row.renormalize) &&
                        routing.scoring != RouterScoring::kSoftmaxOverSelected;
  if (routing.renormalize && routing.scoring == RouterScoring::kSigmoid) {
    routing.renorm_epsilon = 1e-20F;
  }
  const double scale = config.number_or({"expert_weights_scale"}, 0.0);
  routing.scaling = scale == 0.0 ? 1.0F : static_cast<float>(scale);  // 0 means none
  const bool sigmoid = routing.scoring == RouterScoring::kSigmoid;
  layer.correction_bias = sigmoid || config.bool_or({"has_exp_probs_b"}, false);
  // DeepSeek-V2 and V3 share an architecture, not the rule for groups.
  const int64_t groups = config.int_in_range_or({"expert_group_count"}, 0, 0, kMaxExperts);
  const int64_t kept = config.int_in_range_or({"expert_group_used_count"}, 0, 0, kMaxExperts);
  if (groups > 1 && groups != kept) {
    routing.group_score = sigmoid ? GroupScore::kTopTwoSum : GroupScore::kMax;
    routing.masked_score = sigmoid ? family_config::kNegativeInfinity : 0.0F;
    routing.num_groups = static_cast<int>(groups);
    routing.topk_group = static_cast<int>(kept);
  }
}

void read_shared(const ConfigReader& config, Shared shared, MoeLayerSpec& layer) {
  const auto width = [&](int64_t fallback) {
    return family_config::size_or(config, {"expert_shared_feed_forward_length"}, fallback);
  };
  switch (shared) {
    case Shared::kNone:
      break;
    case Shared::kCount:
      family_config::add_shared(layer,
                                family_config::shared_count(config, {"expert_shared_count"}, 0),
                                layer.intermediate_size);
      break;
    case Shared::kWidth:
      family_config::add_shared(layer, 1, width(0));
      break;
    case Shared::kGatedWidth:
      family_config::add_shared(layer, 1,
                                width(config.require_int({"feed_forward_length"}, 0, kMaxSize)));
      layer.shared.gated_output = layer.shared.intermediate_size > 0;
      break;
    case Shared::kExpertWidth:
      family_config::add_shared(layer, 1, layer.intermediate_size);
      break;
  }
}

void refuse(const ConfigReader& config, std::string_view key) {
  GANTRY_CHECK(!config.has(key), ErrorCode::kUnsupported,
               "{}: {}: this variant of the architecture cannot be read", config.source(), key);
}

void read_gguf(const ConfigReader& config, MoeLayerSpec& layer) {
  const Architecture& row = architecture_of(config);
  for (const std::string_view key : {"swiglu_clamp_exp", "swiglu_clamp_shexp", "moe_latent_size"})
    refuse(config, key);
  layer.hidden_size = config.require_int({"embedding_length"}, 1, kMaxSize);
  layer.expert_hidden_size = layer.hidden_size;
  layer.num_experts = static_cast<int>(config.require_int({"expert_count"}, 1, kMaxExperts));
  layer.routing.num_experts = layer.num_experts;
  layer.routing.top_k =
      static_cast<int>(config.require_int({"expert_used_count"}, 1, layer.num_experts));
  // Where all feed-forward blocks are experts, their width has no key of its own.
  layer.intermediate_size = config.find_int({"expert_feed_forward_length"})
                                ? config.require_int({"expert_feed_forward_length"}, 1, kMaxSize)
                                : config.require_int({"feed_forward_length"}, 1, kMaxSize);
  read_routing(config, row, layer);
  if (row.model_type == "gguf.gpt-oss") {
    layer.router_bias = true;
    layer.expert_bias = true;
    layer.activation = {
        .kind = Activation::kSwigluOai, .limit = 7.0F, .alpha = 1.702F, .beta = 1.0F};
  }
  if (row.model_type == "gguf.llama4") {
    layer.routing.select_on_logits = true;
    layer.router_weight_on_input = true;
    layer.correction_bias = false;
  }
  read_shared(config, row.shared, layer);
}

TensorPattern stacked(std::string_view name, Part part, GateUp gate_up = GateUp::kSeparate) {
  return {name, part, Stacking::kStacked3d, Orientation::kOutIn, gate_up};
}

TensorPattern correction_bias(std::string_view name) {
  return {name,
          Part::kCorrectionBias,
          Stacking::kSingle,
          Orientation::kOutIn,
          GateUp::kSeparate,
          Naming::kExact};
}

constexpr auto kModelTypes = [] {
  std::array<std::string_view, kArchitectures.size()> types;
  for (size_t i = 0; i < types.size(); ++i)
    types[i] = kArchitectures[i].model_type;
  return types;
}();

}  // namespace

std::span<const std::string_view> gguf_model_types() noexcept { return kModelTypes; }

FamilySpec gguf_family() {
  FamilySpec family;
  family.name = "gguf";
  family.model_types.assign(kModelTypes.begin(), kModelTypes.end());
  family.container = "blk";
  family.tensors = {stacked("ffn_gate_exps", Part::kW1),
                    stacked("ffn_up_exps", Part::kW3),
                    stacked("ffn_down_exps", Part::kW2),
                    stacked("ffn_gate_up_exps", Part::kW13, GateUp::kConcatenated),
                    {"ffn_gate_inp", Part::kRouter},
                    correction_bias("exp_probs_b.bias"),
                    correction_bias("exp_probs_b"),
                    {"ffn_gate_shexp", Part::kSharedW1},
                    {"ffn_up_shexp", Part::kSharedW3},
                    {"ffn_down_shexp", Part::kSharedW2},
                    {"ffn_gate_inp_shexp", Part::kSharedGate}};
  // Whatever else is named like one of these (scales, further experts) changes what is computed.
  family.scope = {"ffn_gate_exps",  "ffn_up_exps",     "ffn_down_exps",  "ffn_gate_up_exps",
                  "ffn_gate_inp",   "exp_probs_b",     "ffn_gate_shexp", "ffn_up_shexp",
                  "ffn_down_shexp", "ffn_gate_chexps", "ffn_up_chexps",  "ffn_down_chexps",
                  "ffn_norm_exps"};
  family.default_prefix = "";
  family.mixed_types = true;
  family.read = read_gguf;
  return family;
}

}  // namespace gantry
