#include "loader/moe_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using nlohmann::json;

MoeModelConfig read(const json& config) { return read_moe_config(config.dump(), "config.json"); }

json qwen3(const json& more = json::object()) {
  json config = {{"model_type", "qwen3_moe"}, {"hidden_size", 32}, {"moe_intermediate_size", 16},
                 {"num_hidden_layers", 2},    {"num_experts", 8},  {"num_experts_per_tok", 2}};
  config.update(more);
  return config;
}

void expect_format_error(const json& config, std::initializer_list<std::string_view> parts) {
  expect_error([&] { read(config); }, ErrorCode::kFormat, parts);
}

TEST(MoeConfigTest, ReadsSizes) {
  const MoeModelConfig model = read(qwen3());
  EXPECT_EQ(model.model_type, "qwen3_moe");
  EXPECT_EQ(model.family, find_family("qwen3_moe"));
  EXPECT_EQ(model.num_layers, 2);
  ASSERT_EQ(model.layers.size(), 2u);
  const MoeLayerSpec& layer = model.layers[1];
  EXPECT_EQ(layer.layer, 1);
  EXPECT_EQ(layer.num_experts, 8);
  EXPECT_EQ(layer.hidden_size, 32);
  EXPECT_EQ(layer.expert_hidden_size, 32);
  EXPECT_EQ(layer.intermediate_size, 16);
  EXPECT_EQ(layer.routing.num_experts, 8);
  EXPECT_EQ(layer.routing.top_k, 2);
  EXPECT_EQ(layer.shared.intermediate_size, 0);
  EXPECT_EQ(model.find_layer(1), &model.layers[1]);
  EXPECT_EQ(model.find_layer(2), nullptr);
  EXPECT_FALSE(model.quant.has_value());
}

TEST(MoeConfigTest, ReadsTheDecoderInsideAMultiModalConfig) {
  json root = {{"model_type", "qwen3_vl_moe"}, {"vision_config", {{"depth", 2}}}};
  root["text_config"] = qwen3({{"model_type", "qwen3_vl_moe_text"}});
  const MoeModelConfig model = read(root);
  EXPECT_EQ(model.model_type, "qwen3_vl_moe_text");
  EXPECT_EQ(model.layers.size(), 2u);
  ASSERT_EQ(model.notes.size(), 1u);
  EXPECT_NE(model.notes[0].find("vision_config"), std::string::npos);
}

TEST(MoeConfigTest, ReadsTheDecoderTwoLevelsDown) {
  json root = {{"model_type", "qwen3_omni_moe"}};
  root["thinker_config"] = {{"model_type", "qwen3_omni_moe_thinker"}};
  root["thinker_config"]["text_config"] = qwen3({{"model_type", "qwen3_omni_moe_text"}});
  EXPECT_EQ(read(root).model_type, "qwen3_omni_moe_text");
}

TEST(MoeConfigTest, GivesUpOnEndlessNesting) {
  json root = qwen3();
  for (int i = 0; i < 8; ++i)
    root = json{{"text_config", root}};
  expect_error([&] { read(root); }, ErrorCode::kUnsupported, {"model_type ''"});
}

TEST(MoeConfigTest, ListsTheModelTypesItKnows) {
  expect_error(
      [] {
        read(qwen3({{"model_type", "llama"}}));
      },
      ErrorCode::kUnsupported, {"config.json", "'llama'", "qwen3_moe", "deepseek_v3", "gpt_oss"});
}

TEST(MoeConfigTest, NamesAMissingKey) {
  for (const char* key : {"hidden_size", "moe_intermediate_size", "num_hidden_layers",
                          "num_experts", "num_experts_per_tok"}) {
    json config = qwen3();
    config.erase(key);
    expect_format_error(config, {"config.json", key, "found none"});
  }
}

TEST(MoeConfigTest, TakesNullForAbsent) {
  expect_format_error(qwen3({{"num_experts", nullptr}}), {"num_experts", "found none"});
  EXPECT_EQ(read(qwen3({{"decoder_sparse_step", nullptr}})).layers.size(), 2u);
}

TEST(MoeConfigTest, ReadsAKeyUnderAnAlias) {
  json config = qwen3({{"num_local_experts", 12}});
  config.erase("num_experts");
  EXPECT_EQ(read(config).layers[0].num_experts, 12);
}

TEST(MoeConfigTest, AcceptsAliasesThatAgree) {
  EXPECT_EQ(read(qwen3({{"num_local_experts", 8}})).layers[0].num_experts, 8);
}

TEST(MoeConfigTest, RefusesAliasesThatDisagree) {
  expect_format_error(qwen3({{"num_local_experts", 12}}),
                      {"num_experts is 8", "num_local_experts is 12", "same thing"});
}

TEST(MoeConfigTest, RefusesWrongTypes) {
  for (const json& value :
       {json("8"), json(8.0), json(true), json::object(), json(-8), json(uint64_t{1} << 63)}) {
    expect_format_error(qwen3({{"num_experts", value}}), {"num_experts"});
  }
  expect_format_error(qwen3({{"hidden_act", 1}}), {"hidden_act", "a string"});
  expect_format_error(qwen3({{"norm_topk_prob", 1}}), {"norm_topk_prob", "true or false"});
}

TEST(MoeConfigTest, RefusesValuesThatMakeNoSense) {
  for (const char* key : {"hidden_size", "moe_intermediate_size", "num_hidden_layers",
                          "num_experts", "num_experts_per_tok"}) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
      expect_format_error(qwen3({{key, value}}), {key, std::to_string(value)});
    }
  }
  expect_format_error(qwen3({{"num_experts_per_tok", 9}}), {"num_experts_per_tok", "1 to 8"});
}

TEST(MoeConfigTest, RefusesHugeCountsOfWhatIsOptional) {
  const json base = {{"model_type", "glm4_moe"},    {"hidden_size", 32},
                     {"moe_intermediate_size", 16}, {"num_hidden_layers", 2},
                     {"n_routed_experts", 8},       {"num_experts_per_tok", 2}};
  for (const char* key :
       {"n_shared_experts", "n_group", "topk_group", "num_nextn_predict_layers"}) {
    for (const int64_t value : {INT64_MAX, INT64_MIN, int64_t{1} << 32, int64_t{-1}}) {
      json config = base;
      config[key] = value;
      expect_format_error(config, {key});
    }
  }
  for (const double value : {1e300, -1e39}) {
    json config = base;
    config["routed_scaling_factor"] = value;
    expect_format_error(config, {"routed_scaling_factor"});
  }
}

TEST(MoeConfigTest, RefusesWhatIsNoJsonObject) {
  for (const char* text : {"", "[]", "3", "null", "\"x\"", "{", "{\"model_type\": }", "\xff"}) {
    expect_error([&] { read_moe_config(text, "config.json"); }, ErrorCode::kFormat,
                 {"config.json"});
  }
}

TEST(MoeConfigTest, RefusesAModelTypeThatIsNoText) {
  for (const json& value : {json(3), json(nullptr), json::array(), json::object()}) {
    EXPECT_THROW(read(qwen3({{"model_type", value}})), Error) << value;
  }
}

TEST(MoeConfigTest, ReadsHowQuantizedMatricesAreWritten) {
  const json fp8 = {{"quant_method", "fp8"}, {"weight_block_size", {128, 64}}};
  const MoeModelConfig model = read(qwen3({{"quantization_config", fp8}}));
  ASSERT_TRUE(model.quant.has_value());
  EXPECT_EQ(model.quant->methods(), "fp8");
  EXPECT_EQ(model.quant->scheme_for("any")->block_cols, 64);
  EXPECT_FALSE(read(qwen3({{"quantization_config", nullptr}})).quant.has_value());
}

TEST(MoeConfigTest, RefusesAQuantizationThatItCannotRead) {
  for (const json& value : {json::object(), json("gptq"), json({{"quant_method", "hqq"}})}) {
    EXPECT_THROW(read(qwen3({{"quantization_config", value}})), Error) << value;
  }
}

TEST(MoeConfigTest, ReadsQuantizationBesideANestedDecoder) {
  json root = {{"text_config", qwen3()},
               {"quantization_config", {{"quant_method", "awq"}, {"bits", 4}}}};
  EXPECT_EQ(read(root).quant->methods(), "awq");
}

TEST(MoeConfigTest, ReadsTheDeclaredDtypeUnderBothNames) {
  EXPECT_EQ(read(qwen3({{"dtype", "bfloat16"}})).declared_dtype, DType::kBF16);
  EXPECT_EQ(read(qwen3({{"torch_dtype", "float16"}})).declared_dtype, DType::kF16);
  EXPECT_EQ(read(qwen3({{"torch_dtype", "auto"}})).declared_dtype, std::nullopt);
  EXPECT_EQ(read(qwen3()).declared_dtype, std::nullopt);
}

TEST(MoeConfigTest, NotesMtpLayers) {
  const MoeModelConfig model = read(qwen3({{"num_nextn_predict_layers", 1}}));
  EXPECT_EQ(model.num_mtp_layers, 1);
  ASSERT_EQ(model.notes.size(), 1u);
  EXPECT_NE(model.notes[0].find("1 multi-token prediction"), std::string::npos);
}

TEST(MoeConfigTest, ReadsValuesThatAreListedByLayer) {
  const json config = {{"model_type", "hunyuan_v1_moe"},
                       {"hidden_size", 32},
                       {"intermediate_size", 16},
                       {"moe_intermediate_size", {16, 24}},
                       {"num_hidden_layers", 2},
                       {"num_experts", {8, 4}},
                       {"moe_topk", {1, 3}},
                       {"num_shared_expert", {1, 2}}};
  const MoeModelConfig model = read(config);
  ASSERT_EQ(model.layers.size(), 2u);
  EXPECT_EQ(model.layers[0].routing.top_k, 1);
  EXPECT_EQ(model.layers[1].routing.top_k, 3);
  EXPECT_EQ(model.layers[1].num_experts, 4);
  EXPECT_EQ(model.layers[1].intermediate_size, 24);
  EXPECT_EQ(model.layers[0].shared.intermediate_size, 16);
  EXPECT_EQ(model.layers[1].shared.intermediate_size, 32);
}

TEST(MoeConfigTest, NeedsAnEntryForEachLayerOfAList) {
  expect_format_error(qwen3({{"num_experts_per_tok", {2}}}),
                      {"num_experts_per_tok", "1 entries", "layer 1"});
}

TEST(MoeConfigTest, ReadsTheLargestStack) {
  json config = {{"model_type", "deepseek_v4"},
                 {"hidden_size", 32},
                 {"moe_intermediate_size", 16},
                 {"num_hidden_layers", 10000},
                 {"n_routed_experts", 8},
                 {"num_experts_per_tok", 2},
                 {"vocab_size", 64}};
  config["mlp_layer_types"] = std::vector<std::string>(10000, "hash_moe");
  config["moe_intermediate_size"] = std::vector<int>(10000, 16);
  EXPECT_EQ(read(config).layers.size(), 10000u);
}

TEST(MoeConfigTest, RefusesMoreExpertsThanAnyModelHas) {
  EXPECT_EQ(read(qwen3({{"num_hidden_layers", 100}, {"num_experts", 2048}})).layers.size(), 100u);
  expect_format_error(qwen3({{"num_hidden_layers", 10000}, {"num_experts", 65536}}),
                      {"262144 experts in all layers"});
}

TEST(MoeConfigTest, FindsLayersAmongDenseOnes) {
  const MoeModelConfig model = read(qwen3({{"num_hidden_layers", 6}, {"mlp_only_layers", {0, 3}}}));
  for (const int dense : {-1, 0, 3, 6}) {
    EXPECT_EQ(model.find_layer(dense), nullptr) << dense;
  }
  for (const int layer : {1, 2, 4, 5}) {
    ASSERT_NE(model.find_layer(layer), nullptr) << layer;
    EXPECT_EQ(model.find_layer(layer)->layer, layer);
  }
}

TEST(MoeConfigTest, RefusesMoreLayersThanAnyModelHas) {
  expect_format_error(qwen3({{"num_hidden_layers", 10001}}), {"num_hidden_layers", "10000"});
  json hybrid = {{"model_type", "nemotron_h"}};
  hybrid["layers_block_type"] = std::vector<std::string>(10001, "moe");
  expect_format_error(hybrid, {"layers_block_type", "10001"});
}

}  // namespace
}  // namespace gantry::test
