// Checkpoints of Transformers written again as GGUF, with the metadata that llama.cpp's converter
// writes for them (here by hand, from each config.json): the blocks must still compute what
// Transformers computed.

#include <gtest/gtest.h>

#include "kernels/base/error.h"
#include "runtime/verification.h"
#include "tests/support/gguf_export.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

struct Key {
  std::string name;
  double value = 0.0;
  enum { kInteger, kFloat, kFlag } type = kInteger;
};

struct Conversion {
  std::string golden;
  std::string architecture;
  std::vector<Key> keys;
};

Key integer(std::string name, int value) { return {std::move(name), static_cast<double>(value)}; }
Key number(std::string name, double value) { return {std::move(name), value, Key::kFloat}; }
Key flag(std::string name, bool value) { return {std::move(name), value ? 1.0 : 0.0, Key::kFlag}; }

// What every golden of the generator has: 2 blocks, H 64, I 48 (in the key that the architecture
// uses), E 8, top-2.
std::vector<Key> with_common(std::vector<Key> keys, const char* width, int top_k = 2) {
  for (Key& key : std::vector<Key>{integer("block_count", 2), integer("embedding_length", 64),
                                   integer("expert_count", 8), integer("expert_used_count", top_k),
                                   integer(width, 48)})
    keys.push_back(std::move(key));
  return keys;
}

constexpr const char* kExpertWidth = "expert_feed_forward_length";
constexpr const char* kWidth = "feed_forward_length";

const std::vector<Conversion>& conversions() {
  static const std::vector<Conversion> list = {
      {"mixtral", "llama", with_common({}, kWidth)},
      {"qwen2_moe", "qwen2moe",
       with_common({integer(kWidth, 96), integer("expert_shared_feed_forward_length", 48)},
                   kExpertWidth)},
      {"qwen3_moe", "qwen3moe", with_common({integer(kWidth, 96)}, kExpertWidth)},
      {"qwen3_next", "qwen3next",
       with_common({integer(kWidth, 96), integer("expert_shared_feed_forward_length", 48)},
                   kExpertWidth)},
      {"olmoe", "olmoe", with_common({}, kWidth)},
      {"dbrx", "dbrx", with_common({}, kWidth)},
      {"granitemoe", "granitemoe", with_common({}, kWidth)},
      {"deepseek_v2", "deepseek2",
       with_common({integer(kWidth, 96), integer("leading_dense_block_count", 1),
                    integer("expert_shared_count", 2), number("expert_weights_scale", 1.7),
                    flag("expert_weights_norm", false), integer("expert_gating_func", 1),
                    integer("expert_group_count", 4), integer("expert_group_used_count", 2)},
                   kExpertWidth)},
      {"deepseek_v3", "deepseek2",
       with_common({integer(kWidth, 96), integer("leading_dense_block_count", 1),
                    integer("expert_shared_count", 1), number("expert_weights_scale", 2.5),
                    flag("expert_weights_norm", true), integer("expert_gating_func", 2),
                    integer("expert_group_count", 4), integer("expert_group_used_count", 2)},
                   kExpertWidth)},
      {"glm4_moe", "glm4moe",
       with_common({integer(kWidth, 96), integer("leading_dense_block_count", 1),
                    integer("expert_shared_count", 1), number("expert_weights_scale", 1.5),
                    flag("expert_weights_norm", true)},
                   kExpertWidth)},
      {"dots1", "dots1",
       with_common({integer(kWidth, 96), integer("leading_dense_block_count", 1),
                    integer("expert_shared_count", 2), number("expert_weights_scale", 2.0),
                    flag("expert_weights_norm", true), integer("expert_gating_func", 2)},
                   kExpertWidth)},
      {"ernie4_5_moe", "ernie4_5-moe",
       with_common(
           {integer(kWidth, 96), integer("interleave_moe_layer_step", 1),
            integer("expert_shared_count", 2), integer("expert_shared_feed_forward_length", 96)},
           kExpertWidth)},
      {"hunyuan_v1_moe", "hunyuan-moe",
       with_common({integer(kWidth, 48), integer("expert_shared_feed_forward_length", 48)},
                   kExpertWidth)},
      {"minimax_m2", "minimax-m2",
       with_common({integer(kWidth, 48), integer("expert_gating_func", 2)}, kExpertWidth)},
      {"llama4", "llama4",
       with_common({integer(kWidth, 48), integer("interleave_moe_layer_step", 1)}, kExpertWidth,
                   1)},
      {"gpt_oss", "gpt-oss", with_common({integer(kWidth, 48)}, kExpertWidth)},
  };
  return list;
}

GgufBuilder builder_of(const Conversion& conversion) {
  GgufBuilder builder;
  builder.string("general.architecture", conversion.architecture);
  for (const Key& key : conversion.keys) {
    const std::string name = conversion.architecture + "." + key.name;
    if (key.type == Key::kFloat) {
      builder.f32(name, static_cast<float>(key.value));
    } else if (key.type == Key::kFlag) {
      builder.flag(name, key.value != 0.0);
    } else {
      builder.u32(name, static_cast<uint32_t>(key.value));
    }
  }
  return builder;
}

std::filesystem::path golden_path(const std::string& name) {
  return golden_root() / "families" / name;
}

std::string problem_of(MoeModel& model, const Reference& reference, ParallelConfig parallel) {
  if (!model.report().ok()) return "names: " + summarize(model.report(), 5);
  VerifySettings settings;
  settings.parallel = parallel;
  settings.load.threads.count = 1;
  const VerifyResult result = verify_model(model, &reference, settings, {});
  if (result.blocks.size() != reference.blocks.size()) return "not every block was compared";
  return model.report().ok() ? "" : summarize(model.report(), 5);
}

class GgufFamilyTest : public testing::TestWithParam<Conversion> {};

TEST_P(GgufFamilyTest, ComputesWhatTransformersComputed) {
  const MoeModel source(golden_path(GetParam().golden), /*names_only=*/false);
  const Reference reference =
      read_reference(golden_path(GetParam().golden) / "moe_io.safetensors", source.config());
  GgufBuilder builder = builder_of(GetParam());
  export_gguf(source, {}, builder);
  const TempDir dir;
  dir.write("model.gguf", builder.bytes());
  for (const ParallelConfig& parallel :
       {ParallelConfig{}, ParallelConfig{.tp_size = 3, .ep_size = 2}}) {
    MoeModel model(dir.path(), /*names_only=*/false);
    EXPECT_EQ(model.config().model_type, "gguf." + GetParam().architecture);
    EXPECT_EQ(problem_of(model, reference, parallel), "");
  }
}

// Every tensor is needed: without it the file is refused, not computed differently.
TEST_P(GgufFamilyTest, NoticesEveryMissingTensor) {
  const MoeModel source(golden_path(GetParam().golden), /*names_only=*/false);
  GgufBuilder whole = builder_of(GetParam());
  export_gguf(source, {}, whole);
  for (size_t i = 0; i < whole.tensors.size(); ++i) {
    GgufBuilder damaged = whole;
    damaged.tensors.erase(damaged.tensors.begin() + static_cast<ptrdiff_t>(i));
    const std::string& name = whole.tensors[i].name;
    const TempDir dir;
    dir.write("model.gguf", damaged.bytes());
    MoeModel model(dir.path(), /*names_only=*/false);
    EXPECT_FALSE(model.report().ok()) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Conversions, GgufFamilyTest, testing::ValuesIn(conversions()),
                         [](const auto& tested) { return tested.param.golden; });

// What quantized tensors compute must be what their dequantized values compute, bit by bit.
class GgufTypesTest : public testing::Test {
 protected:
  using Encodings = std::function<GgufEncoding(const std::string&)>;

  // Gate and up of each expert in one tensor, gate rows first.
  static void fuse_gate_and_up(GgufBuilder& builder) {
    for (size_t i = 0; i < builder.tensors.size(); ++i) {
      GgufBuilder::Tensor& gate = builder.tensors[i];
      const size_t at = gate.name.find("ffn_gate_exps.weight");
      if (at == std::string::npos) continue;
      const GgufBuilder::Tensor up = builder.tensors[i + 1];  // as export_gguf writes them
      ASSERT_NE(up.name.find("ffn_up_exps.weight"), std::string::npos);
      const size_t slab = gate.data.size() / gate.ne[2];
      std::string data;
      for (size_t e = 0; e < gate.ne[2]; ++e)
        data += gate.data.substr(e * slab, slab) + up.data.substr(e * slab, slab);
      gate.name.replace(at, std::string::npos, "ffn_gate_up_exps.weight");
      gate.ne[1] *= 2;
      gate.data = data;
      builder.tensors.erase(builder.tensors.begin() + static_cast<ptrdiff_t>(i) + 1);
    }
  }

  std::vector<float> output(const Encodings& encodings, ParallelConfig parallel,
                            bool fused = false) {
    const MoeModel source(golden_path("qwen2_moe"), /*names_only=*/false);
    const Reference reference =
        read_reference(golden_path("qwen2_moe") / "moe_io.safetensors", source.config());
    GgufBuilder builder = builder_of(conversions()[1]);
    export_gguf(source, encodings, builder);
    if (fused) fuse_gate_and_up(builder);
    const TempDir dir;
    dir.write("model.gguf", builder.bytes());
    MoeModel model(dir.path(), /*names_only=*/false);
    EXPECT_EQ(summarize(model.report(), 5), summarize(LoadReport(), 5));
    const LayerBatch batch{.hidden_states = reference.blocks.at(1).input};
    FusedMoeOptions options;
    options.activations = ActivationDType::kF32;
    return gather_outputs(
        run_layer_on_ranks(model, 1, parallel, Placement::kLinear, {}, options, &batch), parallel);
  }
};

bool ends_in(const std::string& name, std::string_view end) { return name.ends_with(end); }

TEST_F(GgufTypesTest, RoutersAndSharedExpertsMayBeQuantized) {
  const auto encodings = [](const GgufEncoding& quantized) {
    return [quantized](const std::string& name) {
      const bool whole_blocks = ends_in(name, "ffn_gate_inp.weight") ||
                                ends_in(name, "gate_shexp.weight") ||
                                ends_in(name, "up_shexp.weight");
      // Rows of 48 are no whole blocks: bf16, so that the shared experts are of two types.
      return whole_blocks                             ? quantized
             : ends_in(name, "ffn_down_shexp.weight") ? bf16_encoding()
                                                      : GgufEncoding{};
    };
  };
  for (const ParallelConfig& parallel : {ParallelConfig{}, ParallelConfig{.tp_size = 3}}) {
    const std::vector<float> expected = output(encodings(f32_of_q8_0_encoding()), parallel);
    ASSERT_GT(expected.size(), 0U);
    EXPECT_EQ(output(encodings(q8_0_encoding()), parallel), expected);
  }
}

TEST_F(GgufTypesTest, GateAndUpMayShareATensor) {
  const auto encodings = [](const std::string& name) {
    return ends_in(name, "ffn_gate_exps.weight") || ends_in(name, "ffn_up_exps.weight")
               ? q8_0_encoding()
               : GgufEncoding{};
  };
  for (const ParallelConfig& parallel : {ParallelConfig{}, ParallelConfig{.tp_size = 3}}) {
    EXPECT_EQ(output({}, parallel, /*fused=*/true), output({}, parallel));
    EXPECT_EQ(output(encodings, parallel, /*fused=*/true), output(encodings, parallel));
  }
}

TEST_F(GgufTypesTest, ProjectionsMayDifferInType) {
  const auto encodings = [](const GgufEncoding& up) {
    return [up](const std::string& name) {
      return ends_in(name, "ffn_up_exps.weight")     ? up
             : ends_in(name, "ffn_down_exps.weight") ? bf16_encoding()
                                                     : GgufEncoding{};
    };
  };
  const std::vector<float> plain = output({}, {});
  EXPECT_EQ(output(encodings({}), {}), plain);  // f32 and bf16: the golden's weights are bf16
  EXPECT_EQ(output(encodings(bf16_encoding()), {}), plain);
  const std::vector<float> quantized = output(encodings(f32_of_q8_0_encoding()), {});
  EXPECT_NE(quantized, plain);
  EXPECT_EQ(output(encodings(q8_0_encoding()), {}), quantized);
}

}  // namespace
}  // namespace gantry::test
