// What each family computes, as read from a config.json with nothing but sizes: the defaults of the
// family's configuration class and the arithmetic of its router (Transformers 5.17, vLLM 0.32).

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "loader/moe_config.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using nlohmann::json;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// The last layer of a config: a MoE layer in every family.
MoeLayerSpec last_layer(const json& config) {
  return read_moe_config(config.dump(), "config.json").layers.back();
}

json sizes(const char* model_type, const json& more = json::object()) {
  json config = {{"model_type", model_type}, {"hidden_size", 32}, {"num_hidden_layers", 6}};
  config.update(more);
  return config;
}

/// n_routed_experts 16, top-4, I = 24.
json deepseek(const char* model_type, const json& more = json::object()) {
  json config =
      sizes(model_type,
            {{"moe_intermediate_size", 24}, {"n_routed_experts", 16}, {"num_experts_per_tok", 4}});
  config.update(more);
  return config;
}

json with_num_experts(const char* model_type, const json& more = json::object()) {
  json config = sizes(
      model_type, {{"moe_intermediate_size", 24}, {"num_experts", 16}, {"num_experts_per_tok", 4}});
  config.update(more);
  return config;
}

/// num_local_experts 16, top-4, I = intermediate_size = 24.
json mixtral(const char* model_type, const json& more = json::object()) {
  json config =
      sizes(model_type,
            {{"intermediate_size", 24}, {"num_local_experts", 16}, {"num_experts_per_tok", 4}});
  config.update(more);
  return config;
}

TEST(FamilyConfigTest, MixtralRenormalizesASoftmax) {
  const MoeLayerSpec layer = last_layer(mixtral("mixtral"));
  EXPECT_EQ(layer.routing.method, RoutingMethod::kTopK);
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSoftmax);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_EQ(layer.routing.renorm_epsilon, 0.0F);
  EXPECT_EQ(layer.routing.scaling, 1.0F);
  EXPECT_FALSE(layer.correction_bias);
  EXPECT_EQ(layer.shared.intermediate_size, 0);
  EXPECT_EQ(layer.activation.kind, Activation::kSilu);
}

TEST(FamilyConfigTest, PhimoeUsesSparsemixer) {
  const MoeLayerSpec layer = last_layer(mixtral("phimoe", {{"num_experts_per_tok", 2}}));
  EXPECT_EQ(layer.routing.method, RoutingMethod::kSparsemixer);
  EXPECT_FALSE(layer.routing.renormalize);
  EXPECT_FLOAT_EQ(layer.routing.jitter_epsilon, 0.01F);
  const json jitter = mixtral("phimoe", {{"num_experts_per_tok", 2}, {"router_jitter_noise", 0.2}});
  EXPECT_FLOAT_EQ(last_layer(jitter).routing.jitter_epsilon, 0.2F);
}

TEST(FamilyConfigTest, MinimaxM2RenormalizesWithoutEpsilon) {
  const MoeLayerSpec layer = last_layer(mixtral("minimax_m2"));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSigmoid);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_EQ(layer.routing.renorm_epsilon, 0.0F);
}

TEST(FamilyConfigTest, MinimaxM3ClampsAndScales) {
  const MoeLayerSpec layer = last_layer(mixtral("minimax_m3_vl_text", {{"hidden_act", "silu"}}));
  EXPECT_EQ(layer.routing.scaling, 2.0F);
  EXPECT_EQ(layer.activation.kind, Activation::kSwigluOai);
  EXPECT_EQ(layer.activation.limit, 7.0F);
  EXPECT_FLOAT_EQ(layer.activation.alpha, 1.702F);
  EXPECT_EQ(layer.activation.beta, 1.0F);
  EXPECT_EQ(layer.shared.activation.kind, Activation::kSwigluOai);
  EXPECT_EQ(layer.shared.intermediate_size, 24);
}

TEST(FamilyConfigTest, QwenFamiliesDifferInTheirDefaultRenormalization) {
  const json shared = {{"shared_expert_intermediate_size", 40}};
  EXPECT_FALSE(last_layer(with_num_experts("qwen2_moe", shared)).routing.renormalize);
  EXPECT_FALSE(last_layer(with_num_experts("qwen3_moe")).routing.renormalize);
  EXPECT_TRUE(last_layer(with_num_experts("qwen3_next", shared)).routing.renormalize);
  const json no = {{"norm_topk_prob", false}, {"shared_expert_intermediate_size", 40}};
  EXPECT_FALSE(last_layer(with_num_experts("qwen3_next", no)).routing.renormalize);
  // These two do not read the key.
  EXPECT_TRUE(last_layer(with_num_experts("qwen3_5_moe_text", no)).routing.renormalize);
  EXPECT_TRUE(last_layer(with_num_experts("qwen3_vl_moe_text", no)).routing.renormalize);
}

TEST(FamilyConfigTest, QwenSharedExpertIsGated) {
  const json config = with_num_experts("qwen2_moe", {{"shared_expert_intermediate_size", 40}});
  EXPECT_EQ(last_layer(config).shared.intermediate_size, 40);
  EXPECT_TRUE(last_layer(config).shared.gated_output);
}

TEST(FamilyConfigTest, DeepseekV2TakesTheBestScoreOfAGroup) {
  const MoeLayerSpec layer =
      last_layer(deepseek("deepseek_v2", {{"topk_method", "group_limited_greedy"},
                                          {"n_group", 4},
                                          {"topk_group", 2},
                                          {"routed_scaling_factor", 16.0},
                                          {"n_shared_experts", 2}}));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSoftmax);
  EXPECT_EQ(layer.routing.group_score, GroupScore::kMax);
  EXPECT_EQ(layer.routing.num_groups, 4);
  EXPECT_EQ(layer.routing.topk_group, 2);
  EXPECT_EQ(layer.routing.masked_score, 0.0F);
  EXPECT_FALSE(layer.routing.renormalize);
  EXPECT_EQ(layer.routing.scaling, 16.0F);
  EXPECT_EQ(layer.shared.intermediate_size, 48);
  EXPECT_FALSE(layer.shared.gated_output);
}

TEST(FamilyConfigTest, DeepseekV2GreedyHasNoGroups) {
  const json config = deepseek("deepseek_v2", {{"n_group", 4}, {"topk_group", 2}});
  EXPECT_EQ(last_layer(config).routing.group_score, GroupScore::kNone);
  expect_error(
      [] {
        last_layer(deepseek("deepseek_v2", {{"topk_method", "noaux_tc"}}));
      },
      ErrorCode::kUnsupported, {"topk_method", "noaux_tc"});
}

TEST(FamilyConfigTest, DeepseekV3TakesTheTopTwoOfAGroup) {
  const MoeLayerSpec layer = last_layer(deepseek("deepseek_v3"));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSigmoid);
  EXPECT_EQ(layer.routing.group_score, GroupScore::kTopTwoSum);
  EXPECT_EQ(layer.routing.num_groups, 8);
  EXPECT_EQ(layer.routing.topk_group, 4);
  EXPECT_EQ(layer.routing.masked_score, kMinusInfinity);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_FLOAT_EQ(layer.routing.renorm_epsilon, 1e-20F);
  EXPECT_EQ(layer.routing.scaling, 2.5F);
  EXPECT_EQ(layer.shared.intermediate_size, 24);
}

TEST(FamilyConfigTest, KimiK2HasOneGroup) {
  const MoeLayerSpec layer = last_layer(deepseek("kimi_k2", {{"n_group", 1},
                                                             {"topk_group", 1},
                                                             {"first_k_dense_replace", 1},
                                                             {"routed_scaling_factor", 2.827}}));
  EXPECT_EQ(layer.routing.group_score, GroupScore::kNone);
  EXPECT_FLOAT_EQ(layer.routing.scaling, 2.827F);
}

TEST(FamilyConfigTest, Axk1EndsWithANorm) {
  const MoeLayerSpec layer = last_layer(deepseek("axk1", {{"rms_norm_eps", 1e-5}}));
  EXPECT_TRUE(layer.output_norm);
  EXPECT_FLOAT_EQ(layer.norm_epsilon, 1e-5F);
  EXPECT_EQ(layer.routing.num_groups, 8);
}

TEST(FamilyConfigTest, DeepseekV4HashLayersComeFirst) {
  const json config = deepseek("deepseek_v4", {{"num_hash_layers", 2}, {"vocab_size", 64}});
  const MoeModelConfig model = read_moe_config(config.dump(), "c");
  EXPECT_EQ(model.layers[1].routing.method, RoutingMethod::kHash);
  EXPECT_TRUE(model.layers[1].hash_table);
  EXPECT_FALSE(model.layers[1].correction_bias);
  EXPECT_EQ(model.layers[1].vocab_size, 64);
  const MoeLayerSpec& layer = model.layers[2];
  EXPECT_EQ(layer.routing.method, RoutingMethod::kTopK);
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSqrtSoftplus);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_FALSE(layer.hash_table);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_EQ(layer.routing.scaling, 1.5F);
  EXPECT_EQ(layer.activation.limit, 10.0F);
  EXPECT_EQ(layer.shared.activation.limit, 10.0F);
}

TEST(FamilyConfigTest, DeepseekV4LayerTypesNameHashLayers) {
  json config = deepseek("deepseek_v4", {{"vocab_size", 64}, {"num_hidden_layers", 2}});
  config["mlp_layer_types"] = {"moe", "hash_moe"};
  const MoeModelConfig model = read_moe_config(config.dump(), "c");
  EXPECT_FALSE(model.layers[0].hash_table);
  EXPECT_TRUE(model.layers[1].hash_table);
}

TEST(FamilyConfigTest, Glm4MoeHasOneGroupByDefault) {
  const MoeLayerSpec layer = last_layer(deepseek("glm4_moe"));
  EXPECT_EQ(layer.routing.group_score, GroupScore::kNone);
  EXPECT_EQ(layer.routing.scaling, 1.0F);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_EQ(layer.shared.intermediate_size, 24);
}

TEST(FamilyConfigTest, RelativesOfGlm4MoeHaveDefaultsOfTheirOwn) {
  EXPECT_EQ(last_layer(deepseek("glm4_moe_lite")).routing.scaling, 1.8F);
  EXPECT_EQ(last_layer(deepseek("glm_moe_dsa")).routing.scaling, 2.5F);
  EXPECT_TRUE(last_layer(deepseek("glm4_moe")).routing.renormalize);
  EXPECT_FALSE(last_layer(deepseek("dots1")).routing.renormalize);
}

TEST(FamilyConfigTest, Mistral4MasksGroupsOfASoftmaxWithZero) {
  const MoeLayerSpec layer = last_layer(deepseek("mistral4", {{"n_group", 4}, {"topk_group", 2}}));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSoftmax);
  EXPECT_EQ(layer.routing.group_score, GroupScore::kTopTwoSum);
  EXPECT_EQ(layer.routing.masked_score, 0.0F);
  EXPECT_FALSE(layer.correction_bias);
}

TEST(FamilyConfigTest, KimiLinearReadsItsOwnSpellings) {
  const json config = sizes("kimi_linear", {{"moe_intermediate_size", 24},
                                            {"num_experts", 16},
                                            {"num_experts_per_token", 4},
                                            {"num_expert_group", 4},
                                            {"topk_group", 2},
                                            {"num_shared_experts", 2},
                                            {"moe_renormalize", false}});
  const MoeLayerSpec layer = last_layer(config);
  EXPECT_EQ(layer.routing.top_k, 4);
  EXPECT_EQ(layer.routing.num_groups, 4);
  EXPECT_FALSE(layer.routing.renormalize);
  EXPECT_FLOAT_EQ(layer.routing.scaling, 2.446F);
  EXPECT_EQ(layer.shared.intermediate_size, 48);
}

TEST(FamilyConfigTest, MimoHasNoSharedExpert) {
  const MoeLayerSpec layer = last_layer(deepseek("mimo_v2_flash", {{"n_shared_experts", nullptr}}));
  EXPECT_EQ(layer.shared.intermediate_size, 0);
  EXPECT_TRUE(layer.correction_bias);
}

TEST(FamilyConfigTest, Llama4WeighsTheInput) {
  const MoeLayerSpec layer = last_layer(mixtral("llama4_text", {{"num_experts_per_tok", 1}}));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSigmoid);
  EXPECT_TRUE(layer.routing.select_on_logits);
  EXPECT_FALSE(layer.routing.renormalize);
  EXPECT_TRUE(layer.router_weight_on_input);
  EXPECT_EQ(layer.shared.intermediate_size, 24);
}

TEST(FamilyConfigTest, GptOssHasBiasesAndItsOwnActivation) {
  const MoeLayerSpec layer = last_layer(mixtral("gpt_oss", {{"hidden_act", "silu"}}));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSoftmaxOverSelected);
  EXPECT_TRUE(layer.router_bias);
  EXPECT_TRUE(layer.expert_bias);
  EXPECT_EQ(layer.activation.kind, Activation::kSwigluOai);
  EXPECT_EQ(layer.activation.limit, 7.0F);
  EXPECT_FLOAT_EQ(layer.activation.alpha, 1.702F);
}

TEST(FamilyConfigTest, ErnieBoundsTheSumFromBelow) {
  const json config = sizes("ernie4_5_moe", {{"moe_num_experts", 16},
                                             {"moe_k", 4},
                                             {"moe_intermediate_size", 24},
                                             {"moe_num_shared_experts", 2}});
  const MoeLayerSpec layer = last_layer(config);
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSoftmax);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_FLOAT_EQ(layer.routing.renorm_min, 1e-12F);
  EXPECT_EQ(layer.routing.renorm_epsilon, 0.0F);
  EXPECT_EQ(layer.routing.scaling, 1.0F);
  EXPECT_EQ(layer.shared.intermediate_size, 48);
}

TEST(FamilyConfigTest, Lfm2AddsALargeEpsilon) {
  const MoeLayerSpec layer = last_layer(with_num_experts("lfm2_moe"));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSigmoid);
  EXPECT_FLOAT_EQ(layer.routing.renorm_epsilon, 1e-6F);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_FALSE(
      last_layer(with_num_experts("lfm2_moe", {{"use_expert_bias", false}})).correction_bias);
}

json longcat(const json& more = json::object()) {
  json config = {{"model_type", "longcat_flash"}, {"hidden_size", 32},    {"num_layers", 2},
                 {"n_routed_experts", 8},         {"zero_expert_num", 4}, {"moe_topk", 3},
                 {"expert_ffn_hidden_size", 24}};
  config.update(more);
  return config;
}

TEST(FamilyConfigTest, LongcatRoutesOverZeroExperts) {
  const MoeLayerSpec layer = last_layer(longcat());
  EXPECT_EQ(layer.num_experts, 8);
  EXPECT_EQ(layer.routing.num_experts, 12);
  EXPECT_EQ(layer.routing.num_zero_experts, 4);
  EXPECT_EQ(layer.num_named_experts(), 12);
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSoftmax);
  EXPECT_FALSE(layer.routing.renormalize);
  EXPECT_EQ(layer.routing.scaling, 6.0F);
  EXPECT_TRUE(layer.correction_bias);
}

TEST(FamilyConfigTest, LongcatMaySelectMoreExpertsThanHaveWeights) {
  EXPECT_EQ(last_layer(longcat({{"moe_topk", 10}})).routing.top_k, 10);
  EXPECT_THROW(last_layer(longcat({{"moe_topk", 13}})), Error);
}

TEST(FamilyConfigTest, LongcatRefusesOtherZeroExperts) {
  expect_error(
      [] {
        last_layer(longcat({{"zero_expert_type", "copy"}}));
      },
      ErrorCode::kUnsupported, {"zero_expert_type", "copy"});
  EXPECT_THROW(last_layer(longcat({{"zero_expert_num", -1}})), Error);
  EXPECT_THROW(last_layer(longcat({{"zero_expert_num", INT64_MAX}})), Error);
}

TEST(FamilyConfigTest, NemotronHasNoGateAndALatentSpace) {
  const MoeLayerSpec layer =
      last_layer(deepseek("nemotron_h", {{"hybrid_override_pattern", "M*-MME"},
                                         {"moe_latent_size", 12},
                                         {"moe_shared_expert_intermediate_size", 40},
                                         {"n_groups", 8}}));
  EXPECT_EQ(layer.activation.kind, Activation::kRelu2NoMul);
  EXPECT_FALSE(layer.gated());
  EXPECT_EQ(layer.expert_hidden_size, 12);
  EXPECT_TRUE(layer.has_latent());
  EXPECT_EQ(layer.shared.intermediate_size, 40);
  EXPECT_EQ(layer.shared.activation.kind, Activation::kRelu2NoMul);
  EXPECT_EQ(layer.routing.group_score, GroupScore::kNone);  // n_groups is the mamba mixer's
  EXPECT_EQ(layer.routing.scaling, 1.0F);
  EXPECT_TRUE(layer.correction_bias);
}

TEST(FamilyConfigTest, Gemma4NormsTheRouterInput) {
  const json config = sizes("gemma4_text", {{"num_experts", 16},
                                            {"top_k_experts", 4},
                                            {"moe_intermediate_size", 24},
                                            {"hidden_activation", "gelu_pytorch_tanh"}});
  const MoeLayerSpec layer = last_layer(config);
  EXPECT_TRUE(layer.router_input_norm);
  EXPECT_TRUE(layer.per_expert_scale);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_EQ(layer.activation.kind, Activation::kGeluTanh);
  EXPECT_FLOAT_EQ(layer.norm_epsilon, 1e-6F);
}

TEST(FamilyConfigTest, Cohere2AveragesWithItsSharedExperts) {
  const auto config = [](const json& more) {
    json c = sizes("cohere2_moe",
                   {{"num_experts", 16}, {"num_experts_per_tok", 4}, {"intermediate_size", 24}});
    c.update(more);
    return c;
  };
  const MoeLayerSpec average = last_layer(config({{"num_shared_experts", 2}}));
  EXPECT_EQ(average.output_scale, 0.5F);
  EXPECT_EQ(average.shared.intermediate_size, 48);
  EXPECT_EQ(average.routing.scoring, RouterScoring::kSoftmaxOverSelected);
  EXPECT_EQ(last_layer(config(json::object())).output_scale, 1.0F);
  const json sum = {{"num_shared_experts", 2}, {"shared_expert_combination_strategy", "sum"}};
  EXPECT_EQ(last_layer(config(sum)).output_scale, 1.0F);
  const MoeLayerSpec sigmoid = last_layer(config({{"expert_selection_fn", "sigmoid"}}));
  EXPECT_EQ(sigmoid.routing.scoring, RouterScoring::kSigmoid);
  EXPECT_TRUE(sigmoid.routing.select_on_logits);
  EXPECT_TRUE(sigmoid.routing.renormalize);
}

TEST(FamilyConfigTest, LagunaCapsItsLogits) {
  const MoeLayerSpec layer =
      last_layer(with_num_experts("laguna", {{"shared_expert_intermediate_size", 40},
                                             {"moe_router_logit_softcapping", 30.0},
                                             {"moe_routed_scaling_factor", 2.0}}));
  EXPECT_EQ(layer.router_logit_softcap, 30.0F);
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSigmoid);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_EQ(layer.routing.renorm_epsilon, 0.0F);
  EXPECT_EQ(layer.routing.scaling, 2.0F);
  EXPECT_EQ(layer.shared.intermediate_size, 40);
}

TEST(FamilyConfigTest, Step35ReadsItsLimitsByLayer) {
  json config = sizes("step3p5", {{"moe_num_experts", 16},
                                  {"moe_top_k", 4},
                                  {"moe_intermediate_size", 24},
                                  {"share_expert_dim", 40}});
  config["swiglu_limits"] = {0, 0, 0, 7.0, 0, nullptr};
  config["swiglu_limits_shared"] = {0, 0, 0, 0, 16.0, 0};
  const MoeModelConfig model = read_moe_config(config.dump(), "c");
  ASSERT_EQ(model.layers.size(), 3u);
  EXPECT_EQ(model.layers[0].activation.kind, Activation::kSwigluStep);
  EXPECT_EQ(model.layers[0].activation.limit, 7.0F);
  EXPECT_EQ(model.layers[0].shared.activation.kind, Activation::kSilu);
  EXPECT_EQ(model.layers[1].activation.kind, Activation::kSilu);
  EXPECT_EQ(model.layers[1].shared.activation.limit, 16.0F);
  EXPECT_EQ(model.layers[2].activation.kind, Activation::kSilu);
  EXPECT_EQ(model.layers[2].routing.scoring, RouterScoring::kSigmoid);
  EXPECT_TRUE(model.layers[2].correction_bias);
}

TEST(FamilyConfigTest, GraniteKeepsItsSharedMlpBesideTheBlock) {
  const MoeLayerSpec layer =
      last_layer(mixtral("granitemoeshared", {{"shared_intermediate_size", 40}}));
  EXPECT_EQ(layer.routing.scoring, RouterScoring::kSoftmaxOverSelected);
  EXPECT_EQ(layer.shared.intermediate_size, 40);
  EXPECT_TRUE(find_family("granitemoeshared")->shared_beside_block);
}

TEST(FamilyConfigTest, DbrxReadsItsNestedKeys) {
  json config = {{"model_type", "dbrx"}, {"d_model", 32}, {"n_layers", 2}};
  config["ffn_config"] = {{"moe_num_experts", 16}, {"moe_top_k", 4}, {"ffn_hidden_size", 24}};
  const MoeLayerSpec layer = last_layer(config);
  EXPECT_EQ(layer.hidden_size, 32);
  EXPECT_EQ(layer.intermediate_size, 24);
  EXPECT_TRUE(layer.routing.renormalize);
  config["ffn_config"]["moe_normalize_expert_weights"] = 2.0;
  EXPECT_THROW(last_layer(config), Error);
}

TEST(FamilyConfigTest, HunyuanV3HasNoGroups) {
  const MoeLayerSpec layer = last_layer(with_num_experts("hy_v3"));
  EXPECT_FLOAT_EQ(layer.routing.scaling, 2.826F);
  EXPECT_FLOAT_EQ(layer.routing.renorm_epsilon, 1e-20F);
  EXPECT_EQ(layer.routing.group_score, GroupScore::kNone);
  EXPECT_EQ(layer.shared.intermediate_size, 24);
}

TEST(FamilyConfigTest, GrokRenormalizesUnlessItHasAResidualMlp) {
  EXPECT_TRUE(last_layer(mixtral("grok")).routing.renormalize);
  EXPECT_FALSE(last_layer(mixtral("grok", {{"residual_moe", true}})).routing.renormalize);
  EXPECT_EQ(last_layer(mixtral("grok")).router_logit_softcap, 30.0F);
  EXPECT_EQ(last_layer(mixtral("grok")).activation.kind, Activation::kGelu);
}

TEST(FamilyConfigTest, BailingPairsSigmoidWithABias) {
  EXPECT_EQ(last_layer(with_num_experts("bailing_moe")).routing.scoring, RouterScoring::kSoftmax);
  const json v2 = {{"moe_router_enable_expert_bias", true}, {"score_function", "sigmoid"}};
  EXPECT_TRUE(last_layer(with_num_experts("bailing_moe_v2", v2)).correction_bias);
  expect_error(
      [] {
        last_layer(with_num_experts("bailing_moe", {{"score_function", "sigmoid"}}));
      },
      ErrorCode::kUnsupported, {"score_function"});
}

TEST(FamilyConfigTest, RefusesAnActivationItDoesNotCompute) {
  expect_error(
      [] {
        last_layer(mixtral("mixtral", {{"hidden_act", "mish"}}));
      },
      ErrorCode::kUnsupported, {"'mish'"});
}

}  // namespace
}  // namespace gantry::test
