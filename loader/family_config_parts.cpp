#include "loader/family_config_parts.h"

#include "kernels/base/check.h"

namespace gantry::family_config {

Activation parse_gated_activation(const ConfigReader& config, const std::string& name) {
  if (name == "silu" || name == "swish" || name == "swiglu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_tanh" ||
      name == "gelu_fast") {
    return Activation::kGeluTanh;
  }
  if (name == "relu2") return Activation::kRelu2;
  if (name == "swigluoai") return Activation::kSwigluOai;
  if (name == "situ") return Activation::kSitu;
  fail(ErrorCode::kUnsupported, "{}: activation '{}' is not one that Gantry computes",
       config.source(), name);
}

void read_sizes(const ConfigReader& config, MoeLayerSpec& layer, ConfigReader::Keys num_experts,
                ConfigReader::Keys top_k, ConfigReader::Keys intermediate,
                int64_t num_zero_experts) {
  layer.hidden_size = config.require_int({"hidden_size"}, 1, kMaxSize);
  layer.expert_hidden_size = layer.hidden_size;
  layer.num_experts = static_cast<int>(config.require_int(num_experts, 1, kMaxExperts));
  layer.routing.num_zero_experts = static_cast<int>(num_zero_experts);
  layer.routing.num_experts = layer.num_named_experts();
  layer.routing.top_k = static_cast<int>(config.require_int(top_k, 1, layer.routing.num_experts));
  layer.intermediate_size = config.require_int(intermediate, 1, kMaxSize);
  layer.activation.kind =
      parse_gated_activation(config, config.string_or({"hidden_act", "hidden_activation"}, "silu"));
  layer.shared.activation = layer.activation;
}

void read_moe_sizes(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_experts", "num_local_experts", "n_routed_experts"},
             {"num_experts_per_tok", "num_experts_per_token"}, {"moe_intermediate_size"});
}

void add_shared(MoeLayerSpec& layer, int64_t count, int64_t width) {
  layer.shared.intermediate_size = count * width;
  layer.shared.activation = layer.activation;
}

int64_t size_or(const ConfigReader& config, ConfigReader::Keys keys, int64_t fallback) {
  return config.int_in_range_or(keys, fallback, 0, kMaxSize);
}

int64_t shared_count(const ConfigReader& config, ConfigReader::Keys keys, int64_t fallback) {
  return config.int_in_range_or(keys, fallback, 0, kMaxExperts);
}

void add_shared_experts(const ConfigReader& config, MoeLayerSpec& layer, int64_t default_count) {
  add_shared(layer, shared_count(config, {"n_shared_experts", "num_shared_experts"}, default_count),
             size_or(config, {"moe_shared_expert_intermediate_size"}, layer.intermediate_size));
}

void add_groups(const ConfigReader& config, MoeLayerSpec& layer, GroupScore score,
                float masked_score, int64_t default_groups, int64_t default_kept) {
  const int64_t groups =
      config.int_in_range_or({"n_group", "num_expert_group"}, default_groups, 0, kMaxExperts);
  const int64_t kept = config.int_in_range_or({"topk_group"}, default_kept, 0, kMaxExperts);
  if (groups <= 1 || groups == kept) return;
  layer.routing.group_score = score;
  layer.routing.num_groups = static_cast<int>(groups);
  layer.routing.topk_group = static_cast<int>(kept);
  layer.routing.masked_score = masked_score;
}

void add_sigmoid_bias_router(const ConfigReader& config, MoeLayerSpec& layer,
                             double default_scaling) {
  RoutingSpec& routing = layer.routing;
  routing.scoring = RouterScoring::kSigmoid;
  layer.correction_bias = true;
  routing.renormalize = config.bool_or({"norm_topk_prob", "moe_renormalize"}, true);
  routing.renorm_epsilon = 1e-20F;
  routing.scaling =
      static_cast<float>(config.number_or({"routed_scaling_factor"}, default_scaling));
}

void softmax_router(const ConfigReader& config, MoeLayerSpec& layer, bool default_renormalize) {
  layer.routing.scoring = RouterScoring::kSoftmax;
  layer.routing.renormalize = config.bool_or({"norm_topk_prob"}, default_renormalize);
}

}  // namespace gantry::family_config
