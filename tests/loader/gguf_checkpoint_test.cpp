// Which GGUF files make a checkpoint, what their metadata mean, and what is refused.

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "loader/checkpoint.h"
#include "loader/gguf_config.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "tests/support/expect_error.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

/// One layer of 2 experts, H 32, I 64, as an architecture writes it.
GgufBuilder metadata_of(const std::string& architecture, uint32_t blocks = 1) {
  GgufBuilder builder;
  builder.string("general.architecture", architecture);
  builder.u32(architecture + ".block_count", blocks).u32(architecture + ".embedding_length", 32);
  builder.u32(architecture + ".expert_count", 2).u32(architecture + ".expert_used_count", 1);
  builder.u32(architecture + ".expert_feed_forward_length", 64);
  return builder;
}

GgufBuilder& add_layer(GgufBuilder& builder, int layer) {
  const std::string prefix = "blk." + std::to_string(layer) + ".";
  builder.zeros(prefix + "ffn_gate_inp.weight", {32, 2});
  builder.zeros(prefix + "ffn_gate_exps.weight", {32, 64, 2});
  builder.zeros(prefix + "ffn_up_exps.weight", {32, 64, 2});
  return builder.zeros(prefix + "ffn_down_exps.weight", {64, 32, 2});
}

GgufBuilder model(const std::string& architecture = "qwen3moe") {
  GgufBuilder builder = metadata_of(architecture);
  return add_layer(builder, 0);
}

/// Opens a directory or file and maps its tensors.
struct Opened {
  explicit Opened(const std::filesystem::path& path, bool names_only = false)
      : checkpoint(names_only ? Checkpoint::open_names_only(path) : Checkpoint::open(path)),
        config(read_moe_config(checkpoint.config_text(), checkpoint.config_source())),
        map(TensorMap::build(checkpoint, config, report)) {}

  [[nodiscard]] std::string problems() const { return report.ok() ? "" : summarize(report, 10); }

  Checkpoint checkpoint;
  MoeModelConfig config;
  LoadReport report;
  TensorMap map;
};

void expect_refused(const std::filesystem::path& path, ErrorCode code,
                    std::initializer_list<std::string_view> parts) {
  expect_error([&] { const Opened opened(path); }, code, parts);
}

void expect_finding(const GgufBuilder& builder, std::initializer_list<std::string_view> parts) {
  const TempDir dir;
  dir.write("model.gguf", builder.bytes());
  const Opened opened(dir.path());
  for (const std::string_view part : parts)
    EXPECT_NE(opened.problems().find(part), std::string::npos)
        << part << " in " << opened.problems();
}

// ---- files ---------------------------------------------------------------------------------

TEST(GgufCheckpointTest, IsADirectoryOrTheFileItself) {
  const TempDir dir;
  const auto file = dir.write("tiny.gguf", model().bytes());
  for (const auto& path : {dir.path(), file}) {
    const Opened opened(path);
    EXPECT_EQ(opened.problems(), "");
    EXPECT_EQ(opened.checkpoint.directory(), dir.path());
    EXPECT_EQ(opened.checkpoint.config_source(), file.string());
    EXPECT_EQ(opened.config.model_type, "gguf.qwen3moe");
    const CheckpointTensor* gate = opened.checkpoint.find("blk.0.ffn_gate_exps.weight");
    ASSERT_NE(gate, nullptr);
    EXPECT_EQ(gate->info.shape, (std::vector<int64_t>{2, 64, 32}));
    EXPECT_EQ(opened.checkpoint.file_name(*gate), "tiny.gguf");
  }
}

TEST(GgufCheckpointTest, MayBeABareFileName) {
  const TempDir dir;
  dir.write("tiny.gguf", model().bytes());
  const auto previous = std::filesystem::current_path();
  std::filesystem::current_path(dir.path());
  const Opened opened("tiny.gguf");
  std::filesystem::current_path(previous);
  EXPECT_EQ(opened.problems(), "");
  EXPECT_EQ(opened.checkpoint.directory(), ".");
}

TEST(GgufCheckpointTest, GivesNamesAlone) {
  const TempDir dir;
  dir.write("tiny.gguf", model().bytes());
  const Opened opened(dir.path(), /*names_only=*/true);
  EXPECT_EQ(opened.problems(), "");
  EXPECT_TRUE(opened.checkpoint.files().empty());
  EXPECT_EQ(opened.checkpoint.total_bytes(), 0);
  EXPECT_EQ(opened.map.counts().expert, 3);
}

TEST(GgufCheckpointTest, IsNotReadBesideSafetensors) {
  const TempDir dir;
  dir.write("tiny.gguf", model().bytes());
  dir.write("model.safetensors", "x");
  expect_refused(dir.path(), ErrorCode::kIo, {"config.json"});
}

TEST(GgufCheckpointTest, RefusesAFileThatIsNoGguf) {
  const TempDir dir;
  dir.write("tiny.gguf", "this is text, not a model");
  expect_refused(dir.path(), ErrorCode::kFormat, {"tiny.gguf", "GGUF"});
  expect_refused(dir / "other.gguf", ErrorCode::kIo, {"other.gguf"});
}

TEST(GgufCheckpointTest, RefusesALinkThatLeadsOutside) {
  const TempDir dir;
  const TempDir outside;
  const auto target = outside.write("tiny.gguf", model().bytes());
  std::filesystem::create_symlink(target, dir / "tiny.gguf");
  expect_refused(dir.path(), ErrorCode::kFormat, {"symbolic link"});
}

// ---- parts ---------------------------------------------------------------------------------

GgufBuilder& as_part(GgufBuilder& builder, uint16_t number, uint16_t count, int32_t tensors) {
  builder.raw("split.no", 2, GgufBuilder::bytes_of(number));
  builder.raw("split.count", 2, GgufBuilder::bytes_of(count));
  return builder.raw("split.tensors.count", 5, GgufBuilder::bytes_of(tensors));
}

/// Two layers in two files.
void write_parts(const TempDir& dir, int32_t tensors = 8) {
  GgufBuilder first = metadata_of("qwen3moe", 2);
  add_layer(as_part(first, 0, 2, tensors), 0);
  GgufBuilder second;
  add_layer(as_part(second, 1, 2, tensors), 1);
  dir.write("m-00001-of-00002.gguf", first.bytes());
  dir.write("m-00002-of-00002.gguf", second.bytes());
}

TEST(GgufPartsTest, AreReadTogether) {
  const TempDir dir;
  write_parts(dir);
  for (const auto& path :
       {dir.path(), dir / "m-00001-of-00002.gguf", dir / "m-00002-of-00002.gguf"}) {
    const Opened opened(path);
    EXPECT_EQ(opened.problems(), "") << path;
    EXPECT_EQ(opened.checkpoint.files().size(), 2U);
    EXPECT_EQ(opened.checkpoint.file_name(*opened.checkpoint.find("blk.1.ffn_up_exps.weight")),
              "m-00002-of-00002.gguf");
  }
}

TEST(GgufPartsTest, RefusesAMissingPart) {
  const TempDir dir;
  write_parts(dir);
  std::filesystem::remove(dir / "m-00002-of-00002.gguf");
  expect_refused(dir.path(), ErrorCode::kFormat, {"2 parts", "m-00001-of-00002.gguf"});
  expect_refused(dir / "m-00001-of-00002.gguf", ErrorCode::kIo, {"m-00002-of-00002.gguf"});
}

TEST(GgufPartsTest, RefusesAPartThatIsThereTwice) {
  const TempDir dir;
  write_parts(dir);
  std::filesystem::copy_file(dir / "m-00001-of-00002.gguf", dir / "n-00001-of-00002.gguf");
  expect_refused(dir.path(), ErrorCode::kFormat, {"n-00001-of-00002.gguf"});
  std::filesystem::remove(dir / "m-00002-of-00002.gguf");
  expect_refused(dir.path(), ErrorCode::kFormat, {"part 1 of 2"});
}

TEST(GgufPartsTest, RefusesTwoModelsInADirectory) {
  const TempDir dir;
  dir.write("a.gguf", model().bytes());
  dir.write("b.gguf", model().bytes());
  expect_refused(dir.path(), ErrorCode::kFormat, {"a.gguf", "b.gguf", "name the file"});
  EXPECT_EQ(Opened(dir / "b.gguf").problems(), "");
}

TEST(GgufPartsTest, RefusesANameThatDoesNotLeadToTheOtherParts) {
  const TempDir dir;
  write_parts(dir);
  std::filesystem::rename(dir / "m-00001-of-00002.gguf", dir / "first.gguf");
  expect_refused(dir / "first.gguf", ErrorCode::kFormat, {"first.gguf", "of 2 parts"});
}

TEST(GgufPartsTest, RefusesAnotherNumberOfTensorsThanDeclared) {
  const TempDir dir;
  write_parts(dir, 9);
  expect_refused(dir.path(), ErrorCode::kFormat, {"expected 9 tensors", "found 8"});
}

TEST(GgufPartsTest, RefusesATensorInTwoParts) {
  const TempDir dir;
  GgufBuilder first = model();
  as_part(first, 0, 2, 8);
  GgufBuilder second;
  add_layer(as_part(second, 1, 2, 8), 0);
  dir.write("m-00001-of-00002.gguf", first.bytes());
  dir.write("m-00002-of-00002.gguf", second.bytes());
  expect_refused(dir.path(), ErrorCode::kFormat, {"in two files", "blk.0.ffn_up_exps.weight"});
}

TEST(GgufPartsTest, RefusesAPartNumberThatIsNoNumber) {
  const TempDir dir;
  GgufBuilder builder = model();
  builder.string("split.no", "0");
  dir.write("m.gguf", builder.bytes());
  expect_refused(dir.path(), ErrorCode::kFormat, {"split.no", "integer"});
}

// ---- metadata ------------------------------------------------------------------------------

MoeModelConfig config_of(const GgufBuilder& builder) {
  const TempDir dir;
  dir.write("model.gguf", builder.bytes());
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  return read_moe_config(checkpoint.config_text(), checkpoint.config_source());
}

void expect_config_refused(const GgufBuilder& builder, ErrorCode code,
                           std::initializer_list<std::string_view> parts) {
  expect_error([&] { (void)config_of(builder); }, code, parts);
}

TEST(GgufConfigTest, ReadsEveryArchitectureOfTheTable) {
  for (const std::string_view type : gguf_model_types()) {
    const std::string architecture(type.substr(std::string_view("gguf.").size()));
    GgufBuilder builder = metadata_of(architecture);
    builder.u32(architecture + ".expert_gating_func", 2);
    builder.u32(architecture + ".feed_forward_length", 96);
    const MoeModelConfig config = config_of(builder);
    EXPECT_EQ(config.family->name, "gguf");
    ASSERT_EQ(config.layers.size(), 1U) << architecture;
    const MoeLayerSpec& layer = config.layers[0];
    EXPECT_EQ(layer.num_experts, 2);
    EXPECT_EQ(layer.hidden_size, 32);
    EXPECT_EQ(layer.intermediate_size, 64);
    EXPECT_EQ(layer.routing.scoring, RouterScoring::kSigmoid) << "the key comes first";
  }
}

TEST(GgufConfigTest, RefusesOtherArchitecturesByName) {
  for (const char* name : {"llama2", "bert", "phimoe", "gguf.llama", "clip"}) {
    GgufBuilder builder = model(name);
    expect_config_refused(builder, ErrorCode::kUnsupported,
                          {"model.gguf", "general.architecture", name, "qwen3moe"});
  }
  GgufBuilder none;
  none.zeros("a", {4});
  expect_config_refused(none, ErrorCode::kFormat, {"general.architecture", "none"});
  GgufBuilder number;
  number.u32("general.architecture", 3);
  expect_config_refused(number, ErrorCode::kFormat, {"general.architecture"});
}

TEST(GgufConfigTest, RefusesMissingAndImpossibleKeys) {
  const auto without = [](std::string_view missing) {
    GgufBuilder builder;
    builder.string("general.architecture", "qwen3moe");
    for (const auto& [key, value] : {std::pair{"block_count", 1U},
                                     {"embedding_length", 32U},
                                     {"expert_count", 2U},
                                     {"expert_used_count", 1U},
                                     {"expert_feed_forward_length", 64U}}) {
      if (key != missing) builder.u32(std::string("qwen3moe.") + key, value);
    }
    return add_layer(builder, 0);
  };
  expect_config_refused(without("block_count"), ErrorCode::kFormat, {"qwen3moe.block_count"});
  expect_config_refused(without("embedding_length"), ErrorCode::kFormat, {"embedding_length"});
  expect_config_refused(without("expert_count"), ErrorCode::kFormat, {"expert_count"});
  expect_config_refused(without("expert_used_count"), ErrorCode::kFormat, {"expert_used_count"});
  expect_config_refused(without("expert_feed_forward_length"), ErrorCode::kFormat,
                        {"feed_forward_length"});
  GgufBuilder text = without("expert_count");
  text.string("qwen3moe.expert_count", "2");
  expect_config_refused(text, ErrorCode::kFormat, {"expert_count"});
  GgufBuilder blocks = without("block_count");
  blocks.f32("qwen3moe.block_count", 1.0F);
  expect_config_refused(blocks, ErrorCode::kFormat, {"qwen3moe.block_count", "integer"});
  GgufBuilder top = without("expert_used_count");
  top.u32("qwen3moe.expert_used_count", 3);
  expect_config_refused(top, ErrorCode::kFormat, {"expert_used_count", "3"});
}

TEST(GgufConfigTest, RefusesWhatItDoesNotCompute) {
  expect_config_refused(model().u32("qwen3moe.expert_gating_func", 5), ErrorCode::kUnsupported,
                        {"expert_gating_func", "5"});
  expect_config_refused(model().f32("qwen3moe.swiglu_clamp_exp", 7.0F), ErrorCode::kUnsupported,
                        {"swiglu_clamp_exp"});
  expect_config_refused(model().u32("qwen3moe.moe_latent_size", 16), ErrorCode::kUnsupported,
                        {"moe_latent_size"});
  // Models of these architectures differ in their scores.
  for (const char* name : {"dots1", "minimax-m2"})
    expect_config_refused(model(name), ErrorCode::kFormat, {"expert_gating_func", name});
}

TEST(GgufConfigTest, ReadsHowDeepSeekRoutes) {
  GgufBuilder builder = metadata_of("deepseek2", 3);
  builder.u32("deepseek2.leading_dense_block_count", 1).u32("deepseek2.nextn_predict_layers", 1);
  builder.u32("deepseek2.expert_shared_count", 2).f32("deepseek2.expert_weights_scale", 2.5F);
  builder.flag("deepseek2.expert_weights_norm", true).u32("deepseek2.expert_gating_func", 2);
  builder.u32("deepseek2.expert_group_count", 2).u32("deepseek2.expert_group_used_count", 1);
  const MoeModelConfig config = config_of(builder);
  EXPECT_EQ(config.num_layers, 2);  // the third block predicts further tokens
  EXPECT_EQ(config.num_mtp_layers, 1);
  ASSERT_EQ(config.layers.size(), 1U);
  const MoeLayerSpec& layer = config.layers[0];
  EXPECT_EQ(layer.layer, 1);
  EXPECT_EQ(layer.shared.intermediate_size, 128);
  EXPECT_EQ(layer.routing.scaling, 2.5F);
  EXPECT_TRUE(layer.routing.renormalize);
  EXPECT_TRUE(layer.correction_bias);
  EXPECT_EQ(layer.routing.group_score, GroupScore::kTopTwoSum);
  EXPECT_EQ(layer.routing.num_groups, 2);
  EXPECT_EQ(layer.routing.topk_group, 1);
}

TEST(GgufConfigTest, TakesAScaleOfZeroForNone) {
  EXPECT_EQ(config_of(model().f32("qwen3moe.expert_weights_scale", 0.0F)).layers[0].routing.scaling,
            1.0F);
}

// None of these may pass for a key that is missing.
TEST(GgufConfigTest, RefusesNumbersThatAreNone) {
  for (const float scale :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    expect_config_refused(model().f32("qwen3moe.expert_weights_scale", scale), ErrorCode::kFormat,
                          {"qwen3moe.expert_weights_scale", "NaN"});
  }
  expect_config_refused(
      model().raw("qwen3moe.expert_group_count", 10, GgufBuilder::bytes_of(~uint64_t{0})),
      ErrorCode::kFormat, {"qwen3moe.expert_group_count", "too large"});
  expect_config_refused(
      model().list("qwen3moe.expert_weights_scale", 6, 5000, std::string(20000, '\0')),
      ErrorCode::kFormat, {"qwen3moe.expert_weights_scale"});
}

TEST(GgufConfigTest, ReadsOneWidthALayer) {
  GgufBuilder builder;
  builder.string("general.architecture", "llama").u32("llama.block_count", 2);
  builder.u32("llama.embedding_length", 32).u32("llama.expert_count", 2);
  builder.u32("llama.expert_used_count", 1);
  builder.list("llama.feed_forward_length", 4, 2,
               GgufBuilder::bytes_of(uint32_t{64}) + GgufBuilder::bytes_of(uint32_t{96}));
  const MoeModelConfig config = config_of(builder);
  ASSERT_EQ(config.layers.size(), 2U);
  EXPECT_EQ(config.layers[0].intermediate_size, 64);
  EXPECT_EQ(config.layers[1].intermediate_size, 96);
}

// A file cannot say more about its layers than llama.cpp's keys do.
TEST(GgufConfigTest, TakesNoOtherKeys) {
  GgufBuilder builder = model();
  builder.string("qwen3moe.model_type", "mixtral").string("qwen3moe.quantization_config", "x");
  builder.list("qwen3moe.mlp_only_layers", 4, 1, GgufBuilder::bytes_of(uint32_t{0}));
  EXPECT_EQ(config_of(builder).layers.size(), 1U);
}

TEST(GgufConfigTest, IsQuantizedIfItsExpertsAre) {
  EXPECT_FALSE(config_of(model()).quant.has_value());
  GgufBuilder attention = model();
  attention.tensor({"blk.0.attn_q.weight", {32, 2}, 8, std::string(68, '\0')});
  EXPECT_FALSE(config_of(attention).quant.has_value());
  GgufBuilder experts = model();
  experts.tensors[1].type = 8;
  experts.tensors[1].data = std::string(128 * 34, '\0');
  ASSERT_TRUE(config_of(experts).quant.has_value());
  EXPECT_EQ(config_of(experts).quant->methods(), "gguf");
}

// ---- tensors -------------------------------------------------------------------------------

TEST(GgufTensorsTest, NamesAnUnreadableTypeOfAnExpert) {
  GgufBuilder known = metadata_of("qwen3moe");
  known.zeros("blk.0.ffn_gate_inp.weight", {32, 2});
  known.zeros("blk.0.ffn_gate_exps.weight", {32, 64, 2});
  known.zeros("blk.0.ffn_down_exps.weight", {64, 32, 2});
  GgufBuilder unknown = known;
  known.tensor({"blk.0.ffn_up_exps.weight", {32, 64, 2}, 40, std::string(64 * 36, '\0')});
  unknown.tensor({"blk.0.ffn_up_exps.weight", {32, 64, 2}, 77, std::string(64 * 36, '\0')});
  // nvfp4 has blocks of 64: rows of 32 are none.
  const TempDir dir;
  dir.write("model.gguf", known.bytes());
  expect_refused(dir.path(), ErrorCode::kFormat, {"ffn_up_exps", "nvfp4", "32"});
  expect_finding(unknown, {"ffn_up_exps", "can be read", "type 77"});

  GgufBuilder iq2 = model("qwen3moe");
  iq2.tensors[1] = {"blk.0.ffn_gate_exps.weight", {256, 8, 2}, 16, std::string(16 * 66, '\0')};
  expect_finding(iq2, {"ffn_gate_exps", "can be read", "iq2_xxs"});
}

TEST(GgufTensorsTest, DoesNotMindUnreadableTypesElsewhere) {
  const TempDir dir;
  dir.write("model.gguf", model()
                              .tensor({"token_embd.weight", {256}, 16, std::string(66, '\0')})
                              .tensor({"blk.0.attn_q.weight", {7}, 99, std::string(7, '\0')})
                              .bytes());
  EXPECT_EQ(Opened(dir.path()).problems(), "");
}

TEST(GgufTensorsTest, FindsShapesThatDoNotFitOfBlocksToo) {
  GgufBuilder builder = model();
  builder.tensors[1] = {"blk.0.ffn_gate_exps.weight", {64, 32, 2}, 8, std::string(128 * 34, '\0')};
  expect_finding(builder, {"ffn_gate_exps", "expected [2, 64, 32]", "found [2, 32, 64]"});
}

TEST(GgufTensorsTest, FindsWhatIsMissingOrNotKnown) {
  GgufBuilder missing = model();
  missing.tensors.erase(missing.tensors.begin() + 2);
  expect_finding(missing, {"blk.0.ffn_up_exps.weight: missing"});
  // A scale beside the experts, as nvfp4 files have it, would change what is computed.
  expect_finding(model().zeros("blk.0.ffn_up_exps.scale", {2}), {"ffn_up_exps.scale"});
  expect_finding(model().zeros("blk.0.ffn_up_chexps.weight", {32, 64, 2}), {"ffn_up_chexps"});
  expect_finding(model().zeros("blk.1.ffn_up_exps.weight", {2}), {"blk.1.ffn_up_exps.weight"});
  GgufBuilder empty = metadata_of("qwen3moe");
  expect_finding(empty, {"blk.0.ffn_gate_exps.weight: missing"});
}

TEST(GgufTensorsTest, RefusesAQuantizedBias) {
  GgufBuilder builder = model("llama4");
  builder.u32("llama4.feed_forward_length", 64);
  builder.tensor({"blk.0.ffn_gate_exps.bias", {64, 2}, 8, std::string(4 * 34, '\0')});
  expect_finding(builder, {"ffn_gate_exps.bias", "f32, f16 or bf16", "q8_0"});
}

}  // namespace
}  // namespace gantry::test
