#include "loader/family_config.h"

#include <string>

#include "kernels/base/check.h"
#include "loader/config_reader.h"
#include "loader/family_config_parts.h"
#include "loader/moe_config.h"

// One short reader a family. Defaults are those of the family's configuration class in Transformers
// 5.17 (a config.json may leave a key out); sizes have none and must be there. Families that
// compute the same thing share a reader.

namespace gantry::family_config {

void mixtral(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_local_experts", "num_experts"}, {"num_experts_per_tok"},
             {"intermediate_size"});
  layer.routing.renormalize = true;
}

void minimax_m2(const ConfigReader& config, MoeLayerSpec& layer) {
  mixtral(config, layer);
  add_sigmoid_bias_router(config, layer, 1.0);
  layer.routing.renormalize = true;
  layer.routing.renorm_epsilon = 0.0F;
  layer.correction_bias = config.bool_or({"use_routing_bias"}, true);
  const std::string scoring = config.string_or({"scoring_func"}, "sigmoid");
  if (scoring == "softmax") layer.routing.scoring = RouterScoring::kSoftmax;
}

void minimax_m3(const ConfigReader& config, MoeLayerSpec& layer) {
  minimax_m2(config, layer);
  layer.routing.scaling = static_cast<float>(config.number_or({"routed_scaling_factor"}, 2.0));
  layer.activation = {.kind = Activation::kSwigluOai,
                      .limit = static_cast<float>(config.number_or({"swiglu_limit"}, 7.0)),
                      .alpha = static_cast<float>(config.number_or({"swiglu_alpha"}, 1.702)),
                      .beta = 1.0F};
  add_shared(layer, 1, size_or(config, {"shared_intermediate_size"}, layer.intermediate_size));
}

void phimoe(const ConfigReader& config, MoeLayerSpec& layer) {
  mixtral(config, layer);
  layer.routing.method = RoutingMethod::kSparsemixer;
  layer.routing.renormalize = false;
  layer.routing.jitter_epsilon =
      static_cast<float>(config.number_or({"router_jitter_noise"}, 0.01));
}

void qwen3_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  softmax_router(config, layer, false);
}

void qwen2_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  qwen3_moe(config, layer);
  add_shared(layer, 1, config.require_int({"shared_expert_intermediate_size"}, 0, kMaxSize));
  layer.shared.gated_output = true;
}

void qwen3_next(const ConfigReader& config, MoeLayerSpec& layer) {
  qwen2_moe(config, layer);
  softmax_router(config, layer, true);
}

void qwen3_5_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  qwen2_moe(config, layer);
  layer.routing.renormalize = true;  // not configurable in this family
}

void qwen3_vl_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  qwen3_moe(config, layer);
  layer.routing.renormalize = true;  // not configurable in this family
}

void olmoe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_experts", "num_local_experts"}, {"num_experts_per_tok"},
             {"intermediate_size"});
  softmax_router(config, layer, false);
}

void deepseek_v2(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  softmax_router(config, layer, false);
  layer.routing.renorm_epsilon = 1e-20F;
  layer.routing.scaling = static_cast<float>(config.number_or({"routed_scaling_factor"}, 1.0));
  add_shared_experts(config, layer, 2);
  const std::string method = config.string_or({"topk_method"}, "greedy");
  if (method == "group_limited_greedy") {
    add_groups(config, layer, GroupScore::kMax, 0.0F, 1, 1);
  } else {
    GANTRY_CHECK(method == "greedy", ErrorCode::kUnsupported,
                 "{}: topk_method: expected greedy or group_limited_greedy, found '{}'",
                 config.source(), method);
  }
}

void glm4_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  // Relatives that share everything but the defaults of keys that a config may leave out.
  const std::string type = config.string_or({"model_type"}, "");
  const double default_scaling = type == "glm4_moe_lite" ? 1.8 : type == "glm_moe_dsa" ? 2.5 : 1.0;
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, default_scaling);
  layer.routing.renormalize = config.bool_or({"norm_topk_prob"}, type != "dots1");
  add_groups(config, layer, GroupScore::kTopTwoSum, kNegativeInfinity, 1, 1);
  add_shared_experts(config, layer, 1);
}

void deepseek_v3(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 2.5);
  add_groups(config, layer, GroupScore::kTopTwoSum, kNegativeInfinity, 8, 4);
  add_shared_experts(config, layer, 1);
  const std::string scoring = config.string_or({"scoring_func"}, "sigmoid");
  GANTRY_CHECK(scoring == "sigmoid", ErrorCode::kUnsupported,
               "{}: scoring_func: expected sigmoid, found '{}'", config.source(), scoring);
}

void axk1(const ConfigReader& config, MoeLayerSpec& layer) {
  deepseek_v3(config, layer);
  layer.output_norm = true;
  layer.norm_epsilon = static_cast<float>(config.number_or({"rms_norm_eps"}, 1e-6));
}

void deepseek_v4(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 1.5);
  layer.routing.renormalize = true;
  const std::string scoring = config.string_or({"scoring_func"}, "sqrtsoftplus");
  if (scoring == "sqrtsoftplus") {
    layer.routing.scoring = RouterScoring::kSqrtSoftplus;
  } else if (scoring == "softmax") {
    layer.routing.scoring = RouterScoring::kSoftmax;
  } else {
    GANTRY_CHECK(scoring == "sigmoid", ErrorCode::kUnsupported,
                 "{}: scoring_func: expected sqrtsoftplus, sigmoid or softmax, found '{}'",
                 config.source(), scoring);
  }
  layer.activation.limit = static_cast<float>(config.number_or({"swiglu_limit"}, 10.0));
  const int64_t num_hash_layers = config.int_or({"num_hash_layers"}, 0);
  const auto type = config.find_list_entry("mlp_layer_types");
  const bool hash = type ? *type == "hash_moe" : layer.layer < num_hash_layers;
  if (hash) {
    layer.routing.method = RoutingMethod::kHash;
    layer.correction_bias = false;
    layer.hash_table = true;
    layer.vocab_size = config.require_int({"vocab_size"}, 1, kMaxSize);
  }
  add_shared_experts(config, layer, 1);
}

void kimi_linear(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 2.446);
  add_groups(config, layer, GroupScore::kTopTwoSum, kNegativeInfinity, 1, 1);
  add_shared_experts(config, layer, 1);
}

void mistral4(const ConfigReader& config, MoeLayerSpec& layer) {
  glm4_moe(config, layer);
  layer.routing.scoring = RouterScoring::kSoftmax;
  layer.routing.masked_score = 0.0F;
  layer.correction_bias = false;
}

void mimo_v2(const ConfigReader& config, MoeLayerSpec& layer) {
  glm4_moe(config, layer);
  layer.shared.intermediate_size = 0;
}

void exaone_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 2.5);
  add_groups(config, layer, GroupScore::kTopTwoSum, kNegativeInfinity, 1, 1);
  add_shared_experts(config, layer, 1);
}

void bailing_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  const bool bias = config.bool_or({"moe_router_enable_expert_bias"}, false);
  const std::string score =
      config.string_or({"score_function", "scoring_func"}, bias ? "sigmoid" : "softmax");
  GANTRY_CHECK(
      (score == "sigmoid") == bias && (score == "sigmoid" || score == "softmax"),
      ErrorCode::kUnsupported,
      "{}: score_function '{}' with moe_router_enable_expert_bias {}: expected sigmoid with "
      "a bias or softmax without",
      config.source(), score, bias);
  add_sigmoid_bias_router(config, layer, 1.0);
  layer.correction_bias = bias;
  if (!bias) layer.routing.scoring = RouterScoring::kSoftmax;
  add_groups(config, layer, GroupScore::kTopTwoSum, kNegativeInfinity, 1, 1);
  add_shared_experts(config, layer, 0);
}

void hunyuan_v1(const ConfigReader& config, MoeLayerSpec& layer) {
  // Transformers and the published files give experts the dense width unless they say otherwise.
  read_sizes(config, layer, {"num_experts", "num_local_experts"},
             {"moe_topk", "num_experts_per_tok"}, {"intermediate_size"});
  const int64_t dense_width = layer.intermediate_size;
  layer.intermediate_size =
      config.int_in_range_or({"moe_intermediate_size"}, dense_width, 1, kMaxSize);
  layer.routing.renormalize = true;
  if (config.bool_or({"use_mixed_mlp_moe"}, true)) {
    add_shared(layer, shared_count(config, {"num_shared_expert"}, 1), dense_width);
  }
}

void hunyuan_v3(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 1.0);
  layer.routing.renormalize = config.bool_or({"route_norm"}, true);
  layer.routing.scaling = static_cast<float>(config.number_or({"router_scaling_factor"}, 2.826));
  add_shared_experts(config, layer, 1);
}

void laguna(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 1.0);
  layer.routing.renormalize = true;
  layer.routing.renorm_epsilon = 0.0F;
  layer.routing.scaling = static_cast<float>(config.number_or({"moe_routed_scaling_factor"}, 1.0));
  layer.router_weight_on_input = config.bool_or({"moe_apply_router_weight_on_input"}, false);
  layer.router_logit_softcap =
      static_cast<float>(config.number_or({"moe_router_logit_softcapping"}, 0.0));
  add_shared(layer, 1, config.require_int({"shared_expert_intermediate_size"}, 0, kMaxSize));
}

void cohere2_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_experts", "num_local_experts"}, {"num_experts_per_tok"},
             {"intermediate_size"});
  const std::string selection = config.string_or({"expert_selection_fn"}, "softmax");
  if (selection == "softmax") {
    layer.routing.scoring = RouterScoring::kSoftmaxOverSelected;
  } else {
    GANTRY_CHECK(selection == "sigmoid", ErrorCode::kUnsupported,
                 "{}: expert_selection_fn: expected softmax or sigmoid, found '{}'",
                 config.source(), selection);
    layer.routing.scoring = RouterScoring::kSigmoid;
    layer.routing.select_on_logits = true;
    layer.routing.renormalize = config.bool_or({"norm_topk_prob"}, true);
  }
  add_shared(layer, shared_count(config, {"num_shared_experts"}, 0), layer.intermediate_size);
  const std::string strategy = config.string_or({"shared_expert_combination_strategy"}, "average");
  if (layer.shared.intermediate_size > 0 && strategy == "average") layer.output_scale = 0.5F;
}

void afmoe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 1.0);
  layer.routing.renormalize = true;  // whatever route_norm, n_group and topk_group say
  layer.routing.scaling = static_cast<float>(config.number_or({"route_scale"}, 1.0));
  add_shared_experts(config, layer, 2);
}

void lfm2_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 1.0);
  layer.routing.renorm_epsilon = 1e-6F;
  layer.correction_bias = config.bool_or({"use_expert_bias"}, true);
}

void ernie4_5_moe(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"moe_num_experts", "num_experts"}, {"moe_k", "num_experts_per_tok"},
             {"moe_intermediate_size"});
  layer.correction_bias = config.bool_or({"moe_use_aux_free"}, true);
  layer.routing.renormalize = true;
  layer.routing.renorm_min = static_cast<float>(config.number_or({"moe_norm_min"}, 1e-12));
  add_shared(layer, shared_count(config, {"moe_num_shared_experts"}, 2), layer.intermediate_size);
}

void longcat_flash(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"n_routed_experts", "num_local_experts"},
             {"moe_topk", "num_experts_per_tok"}, {"expert_ffn_hidden_size"},
             config.int_in_range_or({"zero_expert_num"}, 256, 0, kMaxExperts));
  const std::string kind = config.string_or({"zero_expert_type"}, "identity");
  GANTRY_CHECK(kind == "identity", ErrorCode::kUnsupported,
               "{}: zero_expert_type: expected identity, found '{}'", config.source(), kind);
  layer.correction_bias = true;
  layer.routing.renormalize = config.bool_or({"norm_topk_prob"}, false);
  layer.routing.scaling = static_cast<float>(config.number_or({"routed_scaling_factor"}, 6.0));
  layer.router_bias = config.bool_or({"router_bias"}, false);
}

void nemotron_h(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  add_sigmoid_bias_router(config, layer, 1.0);
  add_groups(config, layer, GroupScore::kTopTwoSum, kNegativeInfinity, 1, 1);
  const std::string act = config.string_or({"mlp_hidden_act"}, "relu2");
  GANTRY_CHECK(act == "relu2" || act == "silu", ErrorCode::kUnsupported,
               "{}: mlp_hidden_act: expected relu2 or silu, found '{}'", config.source(), act);
  layer.activation.kind = act == "relu2" ? Activation::kRelu2NoMul : Activation::kSiluNoMul;
  add_shared(layer, shared_count(config, {"n_shared_experts"}, 1),
             size_or(config, {"moe_shared_expert_intermediate_size"}, layer.intermediate_size));
  layer.expert_hidden_size =
      config.int_in_range_or({"moe_latent_size"}, layer.hidden_size, 1, kMaxSize);
}

void jamba(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_experts", "num_local_experts"}, {"num_experts_per_tok"},
             {"intermediate_size"});
}

void dbrx(const ConfigReader& config, MoeLayerSpec& layer) {
  const ConfigReader ffn = config.object_or_empty("ffn_config");
  layer.hidden_size = config.require_int({"d_model", "hidden_size"}, 1, kMaxSize);
  layer.expert_hidden_size = layer.hidden_size;
  layer.num_experts = static_cast<int>(ffn.require_int({"moe_num_experts"}, 1, kMaxExperts));
  layer.routing.num_experts = layer.num_experts;
  layer.routing.top_k = static_cast<int>(ffn.require_int({"moe_top_k"}, 1, layer.num_experts));
  layer.intermediate_size = ffn.require_int({"ffn_hidden_size"}, 1, kMaxSize);
  layer.activation.kind =
      parse_gated_activation(config, ffn.object_or_empty("ffn_act_fn").string_or({"name"}, "silu"));
  const double norm = ffn.number_or({"moe_normalize_expert_weights"}, 1.0);
  GANTRY_CHECK(norm == 1.0, ErrorCode::kUnsupported,
               "{}: moe_normalize_expert_weights: expected 1 (p-norm), found {}", config.source(),
               norm);
  layer.routing.renormalize = true;
}

void granitemoe(const ConfigReader& config, MoeLayerSpec& layer) {
  mixtral(config, layer);
  layer.routing.scoring = RouterScoring::kSoftmaxOverSelected;
  layer.routing.renormalize = false;
  add_shared(layer, 1, size_or(config, {"shared_intermediate_size"}, 0));
}

void gpt_oss(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_local_experts", "num_experts"},
             {"num_experts_per_tok", "experts_per_token"}, {"intermediate_size"});
  layer.routing.scoring = RouterScoring::kSoftmaxOverSelected;
  layer.router_bias = true;
  layer.expert_bias = true;
  layer.activation = {.kind = Activation::kSwigluOai,
                      .limit = static_cast<float>(config.number_or({"swiglu_limit"}, 7.0)),
                      .alpha = 1.702F,
                      .beta = 1.0F};
}

void llama4(const ConfigReader& config, MoeLayerSpec& layer) {
  mixtral(config, layer);
  layer.routing.scoring = RouterScoring::kSigmoid;
  layer.routing.select_on_logits = true;
  layer.routing.renormalize = false;
  layer.router_weight_on_input = true;
  add_shared(layer, 1, layer.intermediate_size);
}

void aria(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"moe_num_experts"}, {"moe_topk"}, {"intermediate_size"});
  layer.activation.kind = Activation::kSilu;  // fixed in the routed experts of this family
  layer.routing.scoring = RouterScoring::kSoftmaxOverSelected;
  add_shared(layer, shared_count(config, {"moe_num_shared_experts"}, 2), layer.intermediate_size);
}

void gemma4(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_experts"}, {"top_k_experts"},
             {"moe_intermediate_size", "expert_intermediate_size"});
  if (!config.has("hidden_activation")) layer.activation.kind = Activation::kGeluTanh;
  layer.routing.renormalize = true;
  layer.per_expert_scale = true;
  layer.router_input_norm = true;
  layer.norm_epsilon = static_cast<float>(config.number_or({"rms_norm_eps"}, 1e-6));
}

void step3(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"moe_num_experts", "n_routed_experts", "num_local_experts"},
             {"moe_top_k", "num_experts_per_tok"}, {"moe_intermediate_size"});
  layer.routing.renormalize = config.bool_or({"norm_expert_weight"}, true);
  layer.routing.scaling = static_cast<float>(config.number_or({"moe_router_scaling_factor"}, 1.0));
  add_shared(layer, 1, config.require_int({"share_expert_dim", "share_expert_dims"}, 0, kMaxSize));
}

void step3_5(const ConfigReader& config, MoeLayerSpec& layer) {
  step3(config, layer);
  layer.routing.scoring = RouterScoring::kSigmoid;
  layer.correction_bias = true;
  layer.routing.renormalize = true;
  // A limit of 0 or null in the per-layer list means none.
  const auto stepped = [&](std::string_view key) {
    const auto limit = static_cast<float>(config.number_or({key}, 0.0));
    return limit > 0.0F ? ActivationSpec{.kind = Activation::kSwigluStep, .limit = limit}
                        : ActivationSpec{.kind = Activation::kSilu};
  };
  layer.activation = stepped("swiglu_limits");
  layer.shared.activation = stepped("swiglu_limits_shared");
}

// Grok-2 is told by residual_moe: its dense branch and the division by sqrt 2 are outside the
// block.
void grok(const ConfigReader& config, MoeLayerSpec& layer) {
  read_sizes(config, layer, {"num_local_experts", "num_experts"}, {"num_experts_per_tok"},
             {"intermediate_size"});
  layer.intermediate_size =
      config.int_in_range_or({"moe_intermediate_size"}, layer.intermediate_size, 1, kMaxSize);
  if (!config.has("hidden_act")) layer.activation.kind = Activation::kGelu;
  const bool residual = config.bool_or({"residual_moe"}, false);
  layer.routing.renormalize =
      config.bool_or({"moe_router_renormalize", "moe_renormalize"}, !residual);
  layer.router_logit_softcap =
      static_cast<float>(config.number_or({"router_logit_softcapping"}, 30.0));
}

void arctic(const ConfigReader& config, MoeLayerSpec& layer) { mixtral(config, layer); }

void interns1_pro(const ConfigReader& config, MoeLayerSpec& layer) {
  read_moe_sizes(config, layer);
  softmax_router(config, layer, true);
  const int64_t groups = config.int_in_range_or({"router_n_groups", "n_group"}, 1, 0, kMaxExperts);
  if (groups > 1) {
    layer.routing.group_score = GroupScore::kTopKOfEach;
    layer.routing.num_groups = static_cast<int>(groups);
    layer.routing.topk_group = static_cast<int>(groups);
  }
}

}  // namespace gantry::family_config
