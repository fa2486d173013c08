// Which layers of a model are MoE layers: one test for each rule that configs use.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "loader/moe_config.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using nlohmann::json;
using Layers = std::vector<int>;

Layers moe_layers(const json& config) {
  Layers layers;
  for (const MoeLayerSpec& spec : read_moe_config(config.dump(), "config.json").layers) {
    layers.push_back(spec.layer);
  }
  return layers;
}

Layers range(int begin, int end) {
  Layers layers(static_cast<size_t>(end - begin));
  std::iota(layers.begin(), layers.end(), begin);
  return layers;
}

/// Sizes under the names that most families use, for a stack of six layers.
json small(const char* model_type, const json& more = {}) {
  json config = {{"model_type", model_type}, {"hidden_size", 32},
                 {"intermediate_size", 24},  {"moe_intermediate_size", 16},
                 {"num_hidden_layers", 6},   {"num_experts_per_tok", 2}};
  const std::string type = model_type;
  const bool routed = type.starts_with("deepseek") || type.starts_with("glm") ||
                      type == "nemotron_h" || type == "mimo_v2_flash";
  const bool local = type == "mixtral" || type.starts_with("llama4") || type == "arctic" ||
                     type.starts_with("granitemoe") || type.starts_with("minimax");
  config[routed ? "n_routed_experts" : local ? "num_local_experts" : "num_experts"] = 8;
  config.update(more.is_null() ? json::object() : more);
  return config;
}

TEST(MoeLayersTest, AreAllLayersWithoutARule) {
  EXPECT_EQ(moe_layers(small("mixtral")), range(0, 6));
  EXPECT_EQ(moe_layers(small("qwen3_moe")), range(0, 6));
}

TEST(MoeLayersTest, FollowFirstKDenseReplace) {
  const json groups = {{"n_group", 1}, {"topk_group", 1}};
  json config = small("deepseek_v3", groups);
  config["first_k_dense_replace"] = 2;
  EXPECT_EQ(moe_layers(config), range(2, 6));
  config["first_k_dense_replace"] = 0;
  EXPECT_EQ(moe_layers(config), range(0, 6));
}

TEST(MoeLayersTest, TakeTheFamilysDefaultForTheFirstDenseLayers) {
  EXPECT_EQ(moe_layers(small("deepseek_v3")), range(3, 6));
  EXPECT_EQ(moe_layers(small("deepseek_v2")), range(0, 6));
  EXPECT_EQ(moe_layers(small("glm4_moe")), range(1, 6));
  EXPECT_EQ(moe_layers(small("mimo_v2_flash")), range(1, 6));
  EXPECT_EQ(moe_layers(small("lfm2_moe")), range(2, 6));
}

TEST(MoeLayersTest, FollowMoeLayerFreqAsAPeriodThatCountsFromZero) {
  const json config = small("deepseek_v2", {{"first_k_dense_replace", 1}, {"moe_layer_freq", 2}});
  EXPECT_EQ(moe_layers(config), (Layers{2, 4}));
}

TEST(MoeLayersTest, FollowMoeLayerFreqAsAListOfFlags) {
  const json config = small("mimo_v2_flash", {{"moe_layer_freq", {0, 1, 0, 1, 1, 0}}});
  EXPECT_EQ(moe_layers(config), (Layers{1, 3, 4}));
}

TEST(MoeLayersTest, NeedAMoeLayerFreqEntryForEachLayer) {
  const json config = small("mimo_v2_flash", {{"moe_layer_freq", {0, 1, 1}}});
  expect_error([&] { moe_layers(config); }, ErrorCode::kFormat, {"moe_layer_freq", "3 entries"});
}

TEST(MoeLayersTest, FollowDecoderSparseStepThatCountsFromOne) {
  EXPECT_EQ(moe_layers(small("qwen3_moe", {{"decoder_sparse_step", 2}})), (Layers{1, 3, 5}));
}

TEST(MoeLayersTest, LeaveOutMlpOnlyLayers) {
  const json config = small("qwen3_moe", {{"mlp_only_layers", {0, 3}}});
  EXPECT_EQ(moe_layers(config), (Layers{1, 2, 4, 5}));
}

TEST(MoeLayersTest, CombineSparseStepAndMlpOnlyLayers) {
  const json config = small("qwen3_moe", {{"decoder_sparse_step", 2}, {"mlp_only_layers", {3}}});
  EXPECT_EQ(moe_layers(config), (Layers{1, 5}));
}

TEST(MoeLayersTest, FollowExpertLayerPeriodAndOffset) {
  const json jamba = small("jamba", {{"expert_layer_period", 3}, {"expert_layer_offset", 2}});
  EXPECT_EQ(moe_layers(jamba), (Layers{2, 5}));
}

TEST(MoeLayersTest, TakeJambasDefaultPeriod) {
  EXPECT_EQ(moe_layers(small("jamba")), (Layers{1, 3, 5}));
}

json ernie(const json& more) {
  json config = small("ernie4_5_moe", {{"moe_num_experts", 8}, {"moe_k", 2}});
  config.update(more);
  return config;
}

TEST(MoeLayersTest, FollowErniesStartEndAndInterval) {
  EXPECT_EQ(moe_layers(ernie({{"moe_layer_start_index", 1}, {"moe_layer_end_index", -1}})),
            range(1, 6));
  EXPECT_EQ(moe_layers(ernie({{"moe_layer_start_index", 1}, {"moe_layer_end_index", 4}})),
            range(1, 5));
  EXPECT_EQ(moe_layers(ernie({{"moe_layer_start_index", 0}, {"moe_layer_interval", 2}})),
            (Layers{1, 3, 5}));
}

TEST(MoeLayersTest, FollowInterleaveMoeLayerStep) {
  EXPECT_EQ(moe_layers(small("llama4_text", {{"interleave_moe_layer_step", 2}})),
            (Layers{1, 3, 5}));
  EXPECT_EQ(moe_layers(small("llama4_text", {{"interleave_moe_layer_step", 1}})), range(0, 6));
}

TEST(MoeLayersTest, PreferLlama4sListToItsStep) {
  const json config =
      small("llama4_text", {{"interleave_moe_layer_step", 2}, {"moe_layers", {0, 4}}});
  EXPECT_EQ(moe_layers(config), (Layers{0, 4}));
}

TEST(MoeLayersTest, FollowMlpLayerTypes) {
  const json config =
      small("glm4_moe_lite",
            {{"mlp_layer_types", {"dense", "sparse", "dense", "sparse", "sparse", "dense"}}});
  EXPECT_EQ(moe_layers(config), (Layers{1, 3, 4}));
}

TEST(MoeLayersTest, TakeHashLayersOfDeepseekV4AsMoe) {
  json config = small("deepseek_v4", {{"num_hidden_layers", 3}, {"vocab_size", 64}});
  config["mlp_layer_types"] = {"hash_moe", "moe", "moe"};
  EXPECT_EQ(moe_layers(config), range(0, 3));
}

TEST(MoeLayersTest, FollowLayersBlockType) {
  json config = small("nemotron_h");
  config["layers_block_type"] = {"mamba", "moe", "attention", "moe", "mlp", "moe"};
  EXPECT_EQ(moe_layers(config), (Layers{1, 3, 5}));
}

TEST(MoeLayersTest, CountTheLayersOfAHybridByItsBlockTypes) {
  json config = small("nemotron_h");
  config.erase("num_hidden_layers");
  config["layers_block_type"] = {"linear_attention", "moe", "full_attention", "moe"};
  EXPECT_EQ(read_moe_config(config.dump(), "c").num_layers, 4);
  EXPECT_EQ(moe_layers(config), (Layers{1, 3}));
}

TEST(MoeLayersTest, DoNotTakeGranitesMixersForBlockTypes) {
  const json config = small("granitemoehybrid", {{"num_hidden_layers", 2},
                                                 {"layers_block_type", {"mamba", "attention"}}});
  EXPECT_EQ(moe_layers(config), range(0, 2));
}

TEST(MoeLayersTest, FollowHybridOverridePattern) {
  EXPECT_EQ(moe_layers(small("nemotron_h", {{"hybrid_override_pattern", "ME*E-E"}})),
            (Layers{1, 3, 5}));
}

TEST(MoeLayersTest, FollowNumDenseLayers) {
  EXPECT_EQ(moe_layers(small("afmoe", {{"num_dense_layers", 4}})), range(4, 6));
}

json step3_5(const json& more) {
  json config =
      small("step3p5", {{"moe_num_experts", 8}, {"moe_top_k", 2}, {"share_expert_dim", 8}});
  config.erase("num_experts");
  config.erase("num_experts_per_tok");
  config.update(more);
  return config;
}

TEST(MoeLayersTest, FollowMoeLayersEnumAsText) {
  EXPECT_EQ(moe_layers(step3_5({{"moe_layers_enum", "1,3, 5"}})), (Layers{1, 3, 5}));
}

TEST(MoeLayersTest, FollowMoeLayersEnumAsAList) {
  EXPECT_EQ(moe_layers(step3_5({{"moe_layers_enum", {2, 4}}})), (Layers{2, 4}));
}

TEST(MoeLayersTest, RefuseAMoeLayersEnumThatNamesNoLayers) {
  expect_error(
      [] {
        moe_layers(step3_5({{"moe_layers_enum", "1,x"}}));
      },
      ErrorCode::kFormat, {"moe_layers_enum", "'x'"});
  expect_error(
      [] {
        moe_layers(step3_5({{"moe_layers_enum", 3}}));
      },
      ErrorCode::kFormat, {"moe_layers_enum"});
}

TEST(MoeLayersTest, FollowArcticsFrequency) {
  EXPECT_EQ(moe_layers(small("arctic", {{"moe_layer_frequency", 2}})), (Layers{1, 3, 5}));
}

TEST(MoeLayersTest, CountLongcatsLayersByNumLayers) {
  const json config = {{"model_type", "longcat_flash"},
                       {"hidden_size", 32},
                       {"num_layers", 3},
                       {"num_hidden_layers", 6},
                       {"n_routed_experts", 8},
                       {"zero_expert_num", 4},
                       {"moe_topk", 3},
                       {"expert_ffn_hidden_size", 16}};
  EXPECT_EQ(read_moe_config(config.dump(), "c").num_layers, 3);
  EXPECT_EQ(moe_layers(config), range(0, 3));
}

TEST(MoeLayersTest, MustBeAtLeastOne) {
  expect_error(
      [] {
        moe_layers(small("deepseek_v3", {{"first_k_dense_replace", 6}}));
      },
      ErrorCode::kFormat, {"none of its 6 layers"});
  expect_error(
      [] {
        moe_layers(small("llama4_text", {{"moe_layers", json::array()}}));
      },
      ErrorCode::kFormat, {"none of its 6 layers"});
}

TEST(MoeLayersTest, RefusePeriodsBelowOne) {
  for (const char* key : {"decoder_sparse_step", "expert_layer_period", "moe_layer_freq"}) {
    for (const int value : {0, -1}) {
      expect_error(
          [&] {
            moe_layers(small("qwen3_moe", {{key, value}}));
          },
          ErrorCode::kFormat, {"at least 1"});
    }
  }
}

TEST(MoeLayersTest, RefuseListsThatAreNoLists) {
  for (const char* key : {"mlp_only_layers", "mlp_layer_types", "moe_layers"}) {
    expect_error(
        [&] {
          moe_layers(small("qwen3_moe", {{key, "sparse"}}));
        },
        ErrorCode::kFormat, {key, "a list"});
  }
}

TEST(MoeLayersTest, RefuseListsOfWhatIsNoLayer) {
  for (const json& entry : {json(-1), json("x"), json(1.5), json(nullptr), json::array({1})}) {
    expect_error(
        [&] {
          moe_layers(small("qwen3_moe", {{"mlp_only_layers", {entry, 0}}}));
        },
        ErrorCode::kFormat, {"mlp_only_layers"});
  }
}

}  // namespace
}  // namespace gantry::test
