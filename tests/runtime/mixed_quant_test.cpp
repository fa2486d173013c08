// Checkpoints whose matrices follow different schemes, put together from the exporters' goldens.
// What a matrix must hold is known: the same as in the golden it was taken from, which
// quant_golden_test.cpp holds against reference outputs.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "tests/runtime/quant_mixture.h"

namespace gantry::test {
namespace {

// Where each matrix of the mixture was taken from.
enum class Origin : uint8_t { kFirst, kSecond };
using OriginOf = std::function<Origin(int expert, Part part)>;

bool has_order(const MutableCheckpoint& checkpoint) {
  return std::any_of(checkpoint.tensors.begin(), checkpoint.tensors.end(), [](const auto& tensor) {
    return tensor.first.ends_with("down_proj.weight_g_idx");
  });
}

void expect_mixture(const MutableCheckpoint& mixture, const MutableCheckpoint& first,
                    const MutableCheckpoint& second, const OriginOf& origin_of) {
  for (const ParallelConfig parallel :
       {ParallelConfig{}, ParallelConfig{.tp_size = 3, .rank = 1}}) {
    // With an activation order of w2 ranks own other neurons: those that its groups are sorted by.
    const bool ordered = has_order(mixture) || has_order(first) || has_order(second);
    if (ordered && parallel.tp_size > 1) continue;
    SCOPED_TRACE(parallel.tp_size);
    const Loaded mixed = load(mixture, parallel);
    const Loaded a = load(first, parallel);
    const Loaded b = load(second, parallel);
    ASSERT_EQ(mixed.problem, "");
    ASSERT_EQ(a.problem + b.problem, "");
    ASSERT_NE(a.w2[0], b.w2[0]) << "the goldens are alike: the test could not fail";
    const auto from = [&](int expert, Part part) -> const Loaded& {
      return origin_of(expert, part) == Origin::kFirst ? a : b;
    };
    for (int e = 0; e < kNumExperts; ++e) {
      EXPECT_TRUE(same_decoded(mixed.gate(e), from(e, Part::kW1).gate(e))) << "expert " << e;
      EXPECT_TRUE(same_decoded(mixed.up(e), from(e, Part::kW3).up(e))) << "expert " << e;
      EXPECT_TRUE(same_decoded(mixed.w2[static_cast<size_t>(e)],
                               from(e, Part::kW2).w2[static_cast<size_t>(e)]))
          << "expert " << e;
    }
  }
}

Origin second_if(bool condition) { return condition ? Origin::kSecond : Origin::kFirst; }

// The config groups of two checkpoints: those of the second for `targets`.
json joined_groups(const MutableCheckpoint& first, const MutableCheckpoint& second,
                   const json& targets) {
  json quantization = quantization_of(first);
  json group = quantization_of(second)["config_groups"]["group_0"];
  group["targets"] = targets;
  quantization["config_groups"]["group_1"] = group;
  quantization["format"] = "mixed-precision";
  return quantization;
}

class ConfigGroupsTest : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(ConfigGroupsTest, GiveEveryExpertItsScheme) {
  const MutableCheckpoint first = golden(GetParam().first);
  const MutableCheckpoint second = golden(GetParam().second);
  MutableCheckpoint mixture = first;
  take(mixture, second, containing(".experts.2."));
  set_quantization(mixture,
                   joined_groups(first, second, {"re:.*mlp\\.experts\\.2\\.(gate|up|down)_proj$"}));
  expect_mixture(mixture, first, second, [](int e, Part) { return second_if(e == 2); });
}

TEST_P(ConfigGroupsTest, GiveEveryProjectionItsScheme) {
  const MutableCheckpoint first = golden(GetParam().first);
  const MutableCheckpoint second = golden(GetParam().second);
  MutableCheckpoint mixture = first;
  take(mixture, second, containing(".down_proj."));
  set_quantization(mixture, joined_groups(first, second, {"re:.*down_proj"}));
  expect_mixture(mixture, first, second,
                 [](int, Part part) { return second_if(part == Part::kW2); });
}

TEST_P(ConfigGroupsTest, GiveEveryLayerItsScheme) {
  const MutableCheckpoint first = golden(GetParam().first);
  const MutableCheckpoint second = golden(GetParam().second);
  MutableCheckpoint mixture = first;
  json config = json::parse(first.config);
  config["num_hidden_layers"] = 2;
  config["quantization_config"] = joined_groups(first, second, {"re:model\\.layers\\.1\\."});
  config.erase("layer_types");
  mixture.config = config.dump();
  for (const auto& [name, tensor] : second.tensors) {
    const size_t at = name.find("layers.0.");
    if (at == std::string::npos) continue;
    std::string moved = name;
    mixture.tensors[moved.replace(at, 9, "layers.1.")] = tensor;
  }
  const Loaded a = load(first);
  const Loaded b = load(second);
  const Loaded layer0 = load(mixture, {}, 0);
  const Loaded layer1 = load(mixture, {}, 1);
  ASSERT_EQ(layer0.problem + layer1.problem, "");
  EXPECT_EQ(layer0.w13, a.w13);
  EXPECT_EQ(layer0.w2, a.w2);
  EXPECT_EQ(layer1.w13, b.w13);
  EXPECT_EQ(layer1.w2, b.w2);
}

INSTANTIATE_TEST_SUITE_P(
    Mixtures, ConfigGroupsTest,
    testing::Values(std::pair("llmcompressor-w4a16_asym", "llmcompressor-w8a8"),
                    std::pair("llmcompressor-w8a8", "llmcompressor-nvfp4"),
                    std::pair("llmcompressor-nvfp4", "llmcompressor-mxfp4"),
                    std::pair("llmcompressor-mxfp8", "llmcompressor-w4a16_asym"),
                    std::pair("llmcompressor0.8-w4a16-gptq-actorder_group",
                              "llmcompressor-w4a16_asym")));

TEST(MixedQuantTest, DynamicGivesExpertsOtherGroupsAndActivationOrder) {
  const MutableCheckpoint first = golden("autoround-auto_gptq-w4a16_asym");
  const MutableCheckpoint second = golden("gptqmodel-w4-g32-desc_act");
  MutableCheckpoint mixture = first;
  take(mixture, second, containing(".experts.1."));
  json quantization = quantization_of(first);
  quantization["dynamic"] = {
      {"-:.*mlp\\.gate$", json::object()},
      {"+:.*\\.experts\\.1\\..*", {{"group_size", 32}, {"sym", true}, {"desc_act", true}}}};
  set_quantization(mixture, quantization);
  expect_mixture(mixture, first, second, [](int e, Part) { return second_if(e == 1); });
}

TEST(MixedQuantTest, ExtraConfigGivesProjectionsOtherBits) {
  const MutableCheckpoint first = golden("autoround-auto_round-w3a16");
  const MutableCheckpoint second = golden("autoround-auto_gptq-w4a16_asym");
  MutableCheckpoint mixture = first;
  take(mixture, second, containing(".experts.3.up_proj."));
  json quantization = quantization_of(first);
  quantization["extra_config"]["model.layers.0.mlp.experts.3.up_proj"] = {{"bits", 4},
                                                                          {"sym", false}};
  set_quantization(mixture, quantization);
  expect_mixture(mixture, first, second,
                 [](int e, Part part) { return second_if(e == 3 && part == Part::kW3); });
}

TEST(MixedQuantTest, QuantizedLayersOfModelOptMayDiffer) {
  const MutableCheckpoint first = golden("modelopt-t4-int4_awq");
  const MutableCheckpoint second = golden("quark-fp8");  // the tensors of ModelOpt's FP8
  MutableCheckpoint mixture = first;
  take(mixture, second, containing(".experts.0."));
  json layers;
  for (int e = 0; e < kNumExperts; ++e) {
    for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
      layers["model.layers.0.mlp.experts." + std::to_string(e) + "." + projection] =
          e == 0 ? json{{"quant_algo", "FP8"}}
                 : json{{"quant_algo", "W4A16_AWQ"}, {"group_size", 128}};
    }
  }
  set_quantization(mixture, {{"quant_method", "modelopt"},
                             {"quant_algo", "MIXED_PRECISION"},
                             {"quantized_layers", layers},
                             {"ignore", {"lm_head"}}});
  expect_mixture(mixture, first, second, [](int e, Part) { return second_if(e == 0); });
}

TEST(MixedQuantTest, LayerConfigsOfQuarkMayDiffer) {
  const MutableCheckpoint first = golden("quark-fp8");
  const MutableCheckpoint second = golden("llmcompressor-mxfp4");
  MutableCheckpoint mixture = first;
  take(mixture, second, containing(".down_proj."));
  json quantization = quantization_of(first);
  json layer = quantization["global_quant_config"];
  layer["weight"].update({{"dtype", "fp4"}, {"qscheme", "per_group"}, {"group_size", 32}});
  layer["input_tensors"] = nullptr;
  quantization["layer_quant_config"] = {{"*down_proj", layer}};
  set_quantization(mixture, quantization);
  expect_mixture(mixture, first, second,
                 [](int, Part part) { return second_if(part == Part::kW2); });
}

TEST(MixedQuantTest, AMatrixThatNoConfigGroupMeansIsAFinding) {
  MutableCheckpoint checkpoint = golden("llmcompressor-nvfp4");
  json quantization = quantization_of(checkpoint);
  quantization["config_groups"]["group_0"]["targets"] = {"re:.*(gate|up)_proj"};
  set_quantization(checkpoint, quantization);
  const Loaded loaded = load(checkpoint);
  EXPECT_NE(loaded.problem.find("down_proj"), std::string::npos) << loaded.problem;
  EXPECT_NE(loaded.problem.find("says nothing"), std::string::npos) << loaded.problem;
}

TEST(MixedQuantTest, TheWrongSchemeForATensorIsAFinding) {
  MutableCheckpoint checkpoint = golden("autoround-auto_gptq-w4a16_asym");
  json quantization = quantization_of(checkpoint);
  quantization["dynamic"]["+:.*experts\\.1\\..*"] = {{"bits", 8}};
  set_quantization(checkpoint, quantization);
  const Loaded loaded = load(checkpoint);
  EXPECT_NE(loaded.problem.find("experts.1"), std::string::npos) << loaded.problem;
}

TEST(MixedQuantTest, BlocksThatReachFromGateIntoUpAreAFinding) {
  MutableCheckpoint checkpoint = golden("hf_fp8-block-fused");
  json quantization = quantization_of(checkpoint);
  quantization["weight_block_size"] = {96, 128};
  set_quantization(checkpoint, quantization);
  const std::string problem = load(checkpoint).problem;
  EXPECT_NE(problem.find("blocks of 96 rows reach across gate and up"), std::string::npos)
      << problem;
}

// ---- experts that are not quantized --------------------------------------------------------

// bf16 matrices of expert 1: values that bf16 holds.
std::vector<float> plain_values(int64_t count, int seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(static_cast<int>((i * 7 + static_cast<size_t>(seed)) % 61) - 30);
  return values;
}

void make_expert_plain(MutableCheckpoint& checkpoint, int expert) {
  const std::string stem = "model.layers.0.mlp.experts." + std::to_string(expert) + ".";
  std::erase_if(checkpoint.tensors,
                [&](const auto& entry) { return entry.first.starts_with(stem); });
  int seed = 0;
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    const std::vector<float> values = plain_values(kHidden * kIntermediate, seed++);
    const bool down = std::string(projection) == "down_proj";
    MutableCheckpoint::Tensor& tensor = checkpoint.tensors[stem + projection + ".weight"];
    tensor.dtype = DType::kBF16;
    tensor.shape = down ? std::vector{kHidden, kIntermediate} : std::vector{kIntermediate, kHidden};
    tensor.bytes.resize(values.size() * 2);
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, &values[i], 4);
      const auto high = static_cast<uint16_t>(bits >> 16);
      std::memcpy(tensor.bytes.data() + 2 * i, &high, 2);
    }
  }
}

class PlainExpertTest : public testing::TestWithParam<const char*> {};

TEST_P(PlainExpertTest, StandsAmongQuantizedOnes) {
  const MutableCheckpoint quantized = golden(GetParam());
  MutableCheckpoint mixture = quantized;
  make_expert_plain(mixture, 1);
  const Loaded intact = load(quantized);
  const Loaded mixed = load(mixture);
  ASSERT_EQ(mixed.problem, "");
  for (size_t e = 0; e < kNumExperts; ++e) {
    if (e == 1) continue;
    EXPECT_EQ(mixed.w13[e], intact.w13[e]);
    EXPECT_EQ(mixed.w2[e], intact.w2[e]);
  }
  EXPECT_EQ(mixed.gate(1), plain_values(kHidden * kIntermediate, 0));
  EXPECT_EQ(mixed.up(1), plain_values(kHidden * kIntermediate, 1));
  EXPECT_EQ(mixed.w2[1], plain_values(kHidden * kIntermediate, 2));
  // The config says that it is quantized: worth a note.
  ASSERT_EQ(mixed.notes.size(), 1U);
  EXPECT_NE(mixed.notes[0].find("3 matrices (model.layers.0.mlp.experts.1."), std::string::npos)
      << mixed.notes[0];
}

INSTANTIATE_TEST_SUITE_P(Methods, PlainExpertTest,
                         testing::Values("llmcompressor-w4a16_asym", "gptqmodel-awq-w4-g32",
                                         "bitsandbytes-nf4", "modelopt-t4-int4_awq", "quark-fp8"));

TEST(MixedQuantTest, APlainExpertThatTheConfigLeavesOutIsNotWorthANote) {
  MutableCheckpoint checkpoint = golden("bitsandbytes-nf4");
  make_expert_plain(checkpoint, 1);
  json quantization = quantization_of(checkpoint);
  quantization["llm_int8_skip_modules"].push_back("model.layers.0.mlp.experts.1");
  set_quantization(checkpoint, quantization);
  const Loaded loaded = load(checkpoint);
  EXPECT_EQ(loaded.problem, "");
  EXPECT_TRUE(loaded.notes.empty()) << loaded.notes[0];
}

TEST(MixedQuantTest, QuantizedExpertsThatTheConfigLeavesOutAreReadWithANote) {
  MutableCheckpoint checkpoint = golden("llmcompressor-nvfp4");
  const Loaded intact = load(checkpoint);
  json quantization = quantization_of(checkpoint);
  quantization["ignore"].push_back("re:.*down_proj");
  set_quantization(checkpoint, quantization);
  const Loaded loaded = load(checkpoint);
  EXPECT_EQ(loaded.problem, "");
  EXPECT_EQ(loaded.w2, intact.w2);
  ASSERT_EQ(loaded.notes.size(), 1U);
  EXPECT_NE(loaded.notes[0].find("4 quantized matrices"), std::string::npos) << loaded.notes[0];
}

}  // namespace
}  // namespace gantry::test
