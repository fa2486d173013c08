// Which scheme a module has, by configs in the words of their exporters.

#include "loader/encodings/quant_config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

QuantConfig read(const std::string& quantization) {
  return read_quant_config(R"({"quantization_config": )" + quantization + "}", "config.json")
      .value();
}

std::string expert(int id, const std::string& projection, int layer = 0) {
  return "model.layers." + std::to_string(layer) + ".mlp.experts." + std::to_string(id) + "." +
         projection;
}

int bits_of(const QuantConfig& config, const std::string& module) {
  const QuantScheme* scheme = config.scheme_for(module);
  return scheme == nullptr ? -1 : scheme->bits;
}

// A config group of llm-compressor 0.14.
std::string group(int bits, int group_size, const std::string& targets,
                  const std::string& format = "pack-quantized") {
  return R"({"format": ")" + format + R"(", "input_activations": null, "output_activations": null,
    "targets": )" +
         targets + R"(, "weights": {"actorder": null, "block_structure": null, "dynamic": false,
    "group_size": )" +
         std::to_string(group_size) + R"(, "num_bits": )" + std::to_string(bits) +
         R"(, "observer": "memoryless_minmax", "observer_kwargs": {}, "scale_dtype": null,
    "strategy": "group", "symmetric": true, "type": "int", "zp_dtype": null}})";
}

std::string compressed_tensors(const std::string& groups, const std::string& ignore = "[]") {
  return R"({"quant_method": "compressed-tensors", "format": "mixed-precision",
    "quantization_status": "compressed", "config_groups": {)" +
         groups + R"(}, "ignore": )" + ignore + "}";
}

TEST(QuantConfigTest, AConfigWithoutQuantizationHasNone) {
  EXPECT_FALSE(read_quant_config(R"({"model_type": "mixtral"})", "config.json").has_value());
  EXPECT_FALSE(read_quant_config(R"({"quantization_config": null})", "config.json").has_value());
}

TEST(QuantConfigTest, OfConfigGroupsNamesComeBeforePatternsAndPatternsBeforeLinear) {
  const QuantConfig config = read(
      compressed_tensors(R"("group_0": )" + group(4, 128, R"(["Linear"])") + R"(, "group_1": )" +
                         group(8, 32, R"(["re:.*down_proj$"])") + R"(, "group_2": )" +
                         group(2, 64, R"(["model.layers.0.mlp.experts.3.down_proj"])")));
  EXPECT_EQ(bits_of(config, expert(0, "gate_proj")), 4);
  EXPECT_EQ(bits_of(config, expert(0, "down_proj")), 8);
  EXPECT_EQ(bits_of(config, expert(3, "down_proj")), 2);
  EXPECT_EQ(config.scheme_for(expert(3, "down_proj"))->group_size, 64);
  EXPECT_EQ(config.methods(), "compressed-tensors pack-quantized");
}

TEST(QuantConfigTest, EveryConfigGroupHasItsFormatOrThatOfAll) {
  const QuantConfig config = read(
      R"({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
        "a": {"targets": ["re:.*up_proj"], "format": null,
              "weights": {"num_bits": 8, "strategy": "channel"}},
        "b": {"targets": ["re:.*down_proj"], "format": "nvfp4-pack-quantized",
              "weights": {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}}}})");
  EXPECT_EQ(config.scheme_for(expert(0, "up_proj"))->method, "compressed-tensors float-quantized");
  EXPECT_EQ(config.scheme_for(expert(0, "down_proj"))->method,
            "compressed-tensors nvfp4-pack-quantized");
  EXPECT_EQ(config.scheme_for(expert(0, "gate_proj")), nullptr);
}

TEST(QuantConfigTest, TwoConfigGroupsThatDifferMustNotMeanTheSameModule) {
  const QuantConfig config =
      read(compressed_tensors(R"("a": )" + group(4, 128, R"(["re:.*experts.*"])") + R"(, "b": )" +
                              group(8, 128, R"(["re:.*down_proj"])")));
  EXPECT_EQ(bits_of(config, expert(0, "up_proj")), 4);
  expect_error([&] { (void)config.scheme_for(expert(0, "down_proj")); }, ErrorCode::kFormat,
               {"experts.0.down_proj", "re:.*experts.*", "re:.*down_proj"});
  expect_error(
      [] {
        read(compressed_tensors(R"("a": )" + group(4, 128, R"(["Linear"])") + R"(, "b": )" +
                                group(8, 128, R"(["Linear"])")));
      },
      ErrorCode::kFormat, {"Linear"});
  expect_error(
      [] {
        read(compressed_tensors(R"("a": )" + group(4, 128, R"(["x.y"])") + R"(, "b": )" +
                                group(8, 128, R"(["x.y"])")));
      },
      ErrorCode::kFormat, {"x.y"});
}

TEST(QuantConfigTest, APartThatCannotBeReadIsAnErrorOnlyWhereItIsNeeded) {
  const QuantConfig config = read(
      R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {
        "a": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8, "strategy": "attn_head"}},
        "b": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"}}}})");
  EXPECT_EQ(bits_of(config, expert(0, "up_proj")), 4);
  expect_error([&] { (void)config.scheme_for("model.layers.0.self_attn.q_proj"); },
               ErrorCode::kUnsupported, {"q_proj", "attn_head"});
}

TEST(QuantConfigTest, IgnoreListsSayWhatIsLeftOutAndDecideNothing) {
  const QuantConfig config = read(compressed_tensors(
      R"("group_0": )" + group(4, 128, R"(["Linear"])"),
      R"(["lm_head", "model.layers.0.mlp.gate", "re:.*experts\\.1\\..*", "re:^(?!.*layers).*"])"));
  EXPECT_TRUE(config.leaves_out("model.layers.0.mlp.gate"));
  EXPECT_FALSE(config.leaves_out(expert(0, "gate_proj")));
  EXPECT_TRUE(config.leaves_out(expert(1, "gate_proj")));
  EXPECT_TRUE(config.leaves_out("visual.patch"));
  EXPECT_EQ(bits_of(config, expert(1, "gate_proj")), 4);
  EXPECT_TRUE(config.notes().empty());
}

TEST(QuantConfigTest, APatternThatDecidesNothingMayBeUnreadable) {
  const QuantConfig config =
      read(compressed_tensors(R"("group_0": )" + group(4, 128, R"(["Linear"])"),
                              R"(["re:(?i).*GATE", "re:(", "lm_head"])"));
  EXPECT_EQ(config.notes().size(), 2U);
  EXPECT_TRUE(config.leaves_out("lm_head"));
  expect_error([] { read(compressed_tensors(R"("a": )" + group(4, 128, R"(["re:(?i)linear"])"))); },
               ErrorCode::kUnsupported, {"(?i)linear"});
}

// GPTQModel: re.match, and of several patterns the first in the file, whatever its spelling.
TEST(QuantConfigTest, DynamicOverridesOfGptqCountInTheOrderOfTheFile) {
  const QuantConfig config = read(
      R"({"bits": 4, "checkpoint_format": "gptq", "desc_act": false, "group_size": 128,
          "quant_method": "gptq", "sym": true, "dynamic": {
            "+:.*\\.1\\..*gate.*": {"bits": 8, "group_size": 32, "sym": false, "desc_act": true},
            "-:.*mlp\\.gate$": {},
            ".*experts\\.2\\..*": {"bits": 3},
            "+:.*\\.2\\.down.*": {"bits": 2},
            "+:.*\\.up_proj": {"bits": 16}}})");
  const QuantScheme& gate = *config.scheme_for(expert(1, "gate_proj"));
  EXPECT_EQ(gate.bits, 8);
  EXPECT_EQ(gate.group_size, 32);
  EXPECT_FALSE(gate.symmetric);
  EXPECT_TRUE(gate.act_order);
  EXPECT_TRUE(gate.zero_minus_one);
  EXPECT_EQ(bits_of(config, expert(1, "down_proj")), 4);
  EXPECT_EQ(config.scheme_for(expert(1, "down_proj"))->group_size, 128);
  EXPECT_EQ(bits_of(config, expert(2, "down_proj")), 3);
  EXPECT_TRUE(config.leaves_out("model.layers.0.mlp.gate"));
  EXPECT_TRUE(config.leaves_out(expert(0, "up_proj")));
  EXPECT_EQ(bits_of(config, expert(0, "up_proj")), 4);
  EXPECT_FALSE(config.leaves_out(expert(0, "gate_proj")));
}

TEST(QuantConfigTest, ExtraConfigOfAutoRoundHasNamesAndPatterns) {
  const QuantConfig config = read(
      R"({"bits": 4, "group_size": 128, "data_type": "int", "sym": true,
          "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "extra_config": {
            ".*model\\.layers\\.0\\.mlp\\.gate.*": {"bits": 16, "data_type": "float"},
            "model.layers.0.mlp.experts.1.down_proj": {"bits": 8, "group_size": 32},
            "experts\\.2\\.": {"bits": 2, "sym": false}}})");
  EXPECT_TRUE(config.leaves_out("model.layers.0.mlp.gate"));
  EXPECT_EQ(bits_of(config, expert(1, "down_proj")), 8);
  EXPECT_EQ(config.scheme_for(expert(1, "down_proj"))->group_size, 32);
  EXPECT_EQ(bits_of(config, expert(1, "up_proj")), 4);
  EXPECT_EQ(bits_of(config, expert(2, "up_proj")), 2);
  EXPECT_FALSE(config.scheme_for(expert(2, "up_proj"))->symmetric);
  EXPECT_EQ(config.scheme_for(expert(2, "up_proj"))->group_size, 128);
}

TEST(QuantConfigTest, QuantizedLayersOfModelOptNameModulesOrWhatHoldsThem) {
  const std::string layers = R"("quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": null,
      "quantized_layers": {
        "model.layers.0.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16},
        "model.layers.0.mlp.experts.1.down_proj": {"quant_algo": "FP8"},
        "model.layers.1.mlp.experts.0.up_proj": {"quant_algo": "W4A16_AWQ", "group_size": 64}})";
  const auto check = [](const QuantConfig& config) {
    EXPECT_EQ(config.scheme_for(expert(0, "up_proj"))->method, "modelopt NVFP4");
    EXPECT_EQ(config.scheme_for(expert(1, "down_proj"))->method, "modelopt FP8");
    EXPECT_EQ(config.scheme_for(expert(0, "up_proj", 1))->group_size, 64);
    EXPECT_EQ(config.scheme_for(expert(0, "down_proj", 1)), nullptr);
    EXPECT_TRUE(config.leaves_out(expert(0, "down_proj", 1)));
    EXPECT_TRUE(config.leaves_out("model.layers.0.mlp.gate"));
  };
  check(
      read(R"({"quant_method": "modelopt", "ignore": ["lm_head", "*.mlp.gate"], )" + layers + "}"));
  check(read_quant_sidecar(
      {"hf_quant_config.json",
       R"({"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": {)" + layers +
           R"(, "exclude_modules": ["lm_head", "model.layers.0.mlp.gate*"]}})"},
      "hf_quant_config.json"));
  expect_error([] { read(R"({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"})"); },
               ErrorCode::kFormat, {"quantized_layers"});
}

TEST(QuantConfigTest, LayerConfigsOfQuarkAreWildcardsThenClasses) {
  const QuantConfig config = read(
      R"({"quant_method": "quark", "exclude": ["*lm_head", "re:.*mlp\\.gate$"],
          "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}},
          "layer_quant_config": {
            "*experts.1.*": {"weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}},
            "*down_proj": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"}}},
          "layer_type_quant_config": {}})");
  EXPECT_EQ(config.scheme_for(expert(0, "up_proj"))->grid, ScaleGrid::kTensor);
  EXPECT_EQ(config.scheme_for(expert(0, "down_proj"))->grid, ScaleGrid::kChannel);
  EXPECT_EQ(config.scheme_for(expert(1, "down_proj"))->grid, ScaleGrid::kGroup);
  EXPECT_TRUE(config.leaves_out("model.lm_head"));
  EXPECT_TRUE(config.leaves_out("model.layers.0.mlp.gate"));
  EXPECT_FALSE(config.leaves_out(expert(0, "gate_proj")));
}

TEST(QuantConfigTest, SkipListsMeanWholeSegmentsOfNames) {
  for (const char* key : {"modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"}) {
    const QuantConfig config = read(std::string(R"({"quant_method": "fp8", ")") + key +
                                    R"(": ["gate", "mlp.experts.1", "lm_head"]})");
    EXPECT_TRUE(config.leaves_out("model.layers.0.mlp.gate")) << key;
    EXPECT_FALSE(config.leaves_out(expert(0, "gate_proj"))) << key;
    EXPECT_TRUE(config.leaves_out(expert(1, "gate_proj"))) << key;
    EXPECT_FALSE(config.leaves_out(expert(11, "gate_proj"))) << key;
  }
}

TEST(QuantConfigTest, OldSidecarsDoNotSayTheirMethod) {
  const QuantConfig gptq = read_quant_sidecar(
      {"quantize_config.json",
       R"({"bits": 4, "group_size": 128, "damp_percent": 0.01, "desc_act": true, "sym": true,
           "true_sequential": true, "model_name_or_path": null})"},
      "quantize_config.json");
  EXPECT_EQ(gptq.methods(), "gptq");
  EXPECT_TRUE(gptq.scheme_for("x")->act_order);
  const QuantConfig awq = read_quant_sidecar(
      {"quant_config.json",
       R"({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})"},
      "quant_config.json");
  EXPECT_EQ(awq.methods(), "awq");
  EXPECT_EQ(awq.scheme_for("x")->group_size, 64);
  EXPECT_EQ(awq.scheme_for("x")->int_packing, IntPacking::kAwq);
}

TEST(QuantConfigTest, RefusesRulesThatAreNoObjects) {
  expect_error([] { read(R"({"quant_method": "gptq", "bits": 4, "dynamic": {"+:x": 8}})"); },
               ErrorCode::kFormat, {"+:x", "number"});
  expect_error([] { read(R"({"quant_method": "gptq", "bits": 4, "dynamic": ["x"]})"); },
               ErrorCode::kFormat, {"dynamic", "array"});
  expect_error(
      [] {
        read(R"({"quant_method": "auto-round", "bits": 4, "extra_config": {"x": {"bits": 9}}})");
      },
      ErrorCode::kFormat, {"bits", "9"});
  expect_error(
      [] {
        read_quant_sidecar({"quant_config.json", "[]"}, "quant_config.json");
      },
      ErrorCode::kFormat, {"quant_config.json", "object"});
}

TEST(QuantConfigTest, BoundsTheNumberOfPatterns) {
  nlohmann::json quantization = {{"quant_method", "gptq"}, {"bits", 4}};
  for (int i = 0; i <= 4096; ++i)
    quantization["dynamic"]["+:x" + std::to_string(i)] = {{"bits", 8}};
  expect_error([&] { read(quantization.dump()); }, ErrorCode::kUnsupported, {"4096"});
}

}  // namespace
}  // namespace gantry::test
