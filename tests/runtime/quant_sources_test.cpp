// Quantized shared experts, and quantization configs in files beside config.json.

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/runtime/quant_mixture.h"

namespace gantry::test {
namespace {

// ---- shared experts ------------------------------------------------------------------------

// The golden as a model whose shared expert has the tensors of expert 3.
MutableCheckpoint with_shared_expert(MutableCheckpoint checkpoint) {
  json config = json::parse(checkpoint.config);
  config["model_type"] = "qwen2_moe";
  config["shared_expert_intermediate_size"] = kIntermediate;
  config["norm_topk_prob"] = true;
  checkpoint.config = config.dump();
  const std::string stem = "model.layers.0.mlp.experts.3.";
  std::map<std::string, MutableCheckpoint::Tensor> shared;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (!name.starts_with(stem)) continue;
    shared["model.layers.0.mlp.shared_expert." + name.substr(stem.size())] = tensor;
  }
  checkpoint.tensors.merge(shared);
  MutableCheckpoint::Tensor& gate =
      checkpoint.tensors["model.layers.0.mlp.shared_expert_gate.weight"];
  gate.shape = {1, kHidden};
  gate.bytes.resize(kHidden * 2);
  return checkpoint;
}

class SharedExpertTest : public testing::TestWithParam<const char*> {};

TEST_P(SharedExpertTest, IsDecodedLikeARoutedOneOnEveryTpRank) {
  const MutableCheckpoint checkpoint = with_shared_expert(golden(GetParam()));
  for (const ParallelConfig parallel :
       {ParallelConfig{}, ParallelConfig{.tp_size = 3, .rank = 2}}) {
    // With an activation order ranks own other neurons of the routed expert: sorted ones.
    const bool ordered = std::string(GetParam()).find("desc_act") != std::string::npos ||
                         std::string(GetParam()).find("actorder") != std::string::npos;
    if (ordered && parallel.tp_size > 1) continue;
    const Loaded loaded = load(checkpoint, parallel);
    ASSERT_EQ(loaded.problem, "");
    EXPECT_TRUE(same_decoded(loaded.shared_w13, loaded.w13[3]));
    EXPECT_TRUE(same_decoded(loaded.shared_w2, loaded.w2[3]));
    EXPECT_NE(loaded.shared_w2, loaded.w2[2]);
  }
}

TEST_P(SharedExpertTest, MissingTensorsAreFindings) {
  const MutableCheckpoint intact = with_shared_expert(golden(GetParam()));
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    MutableCheckpoint damaged = intact;
    std::erase_if(damaged.tensors, [&](const auto& entry) {
      return entry.first.find("shared_expert." + std::string(projection)) != std::string::npos;
    });
    const std::string problem = load(damaged).problem;
    EXPECT_NE(problem.find("shared_expert." + std::string(projection)), std::string::npos)
        << problem;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, SharedExpertTest,
                         testing::Values("llmcompressor-w4a16_asym", "llmcompressor-nvfp4",
                                         "llmcompressor-w8a8", "gptqmodel-awq-w4-g32",
                                         "gptqmodel-w4-g32-desc_act", "autoround-auto_round-w3a16",
                                         "bitsandbytes-nf4", "modelopt-t4-int4_awq", "quark-fp8"));

// ---- files beside config.json --------------------------------------------------------------

Loaded load_with_sidecar(const MutableCheckpoint& checkpoint, bool keep_config,
                         const std::string& name, const json& sidecar) {
  const TempDir dir;
  MutableCheckpoint copy = checkpoint;
  if (!keep_config) {
    json config = json::parse(copy.config);
    config.erase("quantization_config");
    copy.config = config.dump();
  }
  copy.write(dir.path());
  dir.write(name, sidecar.is_string() ? sidecar.get<std::string>() : sidecar.dump());
  return load_directory(dir.path());
}

TEST(QuantSidecarTest, IsReadWhereConfigHasNoQuantization) {
  struct Case {
    const char* golden;
    const char* file;
    json content;
  };
  const json modelopt = {{"producer", {{"name", "modelopt"}, {"version", "0.47.0"}}},
                         {"quantization",
                          {{"quant_algo", "W4A16_AWQ"},
                           {"kv_cache_quant_algo", nullptr},
                           {"group_size", 128},
                           {"has_zero_point", false},
                           {"pre_quant_scale", true},
                           {"exclude_modules", {"lm_head", "model.layers.0.mlp.gate"}}}}};
  const json gptq = {{"bits", 4},        {"group_size", 32}, {"damp_percent", 0.01},
                     {"desc_act", true}, {"sym", true},      {"static_groups", false},
                     {"lm_head", false}};
  const json awq = {{"zero_point", true}, {"q_group_size", 32}, {"w_bit", 4}, {"version", "GEMM"}};
  for (const Case& c : {Case{"modelopt-t4-int4_awq", "hf_quant_config.json", modelopt},
                        Case{"gptqmodel-w4-g32-desc_act", "quantize_config.json", gptq},
                        Case{"gptqmodel-awq-w4-g32", "quant_config.json", awq}}) {
    SCOPED_TRACE(c.golden);
    const MutableCheckpoint checkpoint = golden(c.golden);
    const Loaded expected = load(checkpoint);
    const Loaded loaded = load_with_sidecar(checkpoint, /*keep_config=*/false, c.file, c.content);
    ASSERT_EQ(loaded.problem, "");
    EXPECT_EQ(loaded.w13, expected.w13);
    EXPECT_EQ(loaded.w2, expected.w2);
    ASSERT_EQ(loaded.notes.size(), 1U);
    EXPECT_NE(loaded.notes[0].find(c.file), std::string::npos) << loaded.notes[0];
  }
}

TEST(QuantSidecarTest, AgreesWithConfigOrIsAFindingThatNamesBoth) {
  const MutableCheckpoint checkpoint = golden("gptqmodel-awq-w4-g32");
  json sidecar = quantization_of(checkpoint);
  sidecar["meta"] = {{"quantizer", {"gptqmodel:7.8.0"}}};  // changes no number
  EXPECT_EQ(load_with_sidecar(checkpoint, true, "quantize_config.json", sidecar).problem, "");
  sidecar["group_size"] = 64;
  const std::string problem =
      load_with_sidecar(checkpoint, true, "quantize_config.json", sidecar).problem;
  for (const char* part : {"quantize_config.json", "config.json", "groups of 32", "groups of 64",
                           "layer 0", "expert 0", "w1"}) {
    EXPECT_NE(problem.find(part), std::string::npos) << part << " in " << problem;
  }
}

TEST(QuantSidecarTest, OneThatCannotBeReadIsANoteBesideAConfigThatCan) {
  const MutableCheckpoint checkpoint = golden("gptqmodel-awq-w4-g32");
  const Loaded loaded =
      load_with_sidecar(checkpoint, true, "hf_quant_config.json", json("{\"quantization\": "));
  EXPECT_EQ(loaded.problem, "");
  ASSERT_EQ(loaded.notes.size(), 1U);
  EXPECT_NE(loaded.notes[0].find("hf_quant_config.json"), std::string::npos);
}

}  // namespace
}  // namespace gantry::test
