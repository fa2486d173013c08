#include "loader/tensor_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/synthetic_layer.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

constexpr auto kWeight = TensorKind::kWeight;

/// A layer of these experts' patterns and a router.
SyntheticLayer make_layer(std::string_view model_type,
                          std::initializer_list<std::string_view> patterns,
                          Orientation orientation = Orientation::kOutIn) {
  SyntheticLayer layer = SyntheticLayer::create(model_type, DType::kBF16);
  layer.add_single(Part::kRouter);
  for (const auto name : patterns)
    layer.add(layer.find_pattern(name, orientation), kWeight);
  return layer;
}

SyntheticLayer qwen() {
  return make_layer("qwen3_moe", {"{b}.experts.{e}.gate_proj", "{b}.experts.{e}.up_proj",
                                  "{b}.experts.{e}.down_proj"});
}

SyntheticLayer fused_qwen() {
  return make_layer("qwen3_moe", {"{b}.experts.gate_up_proj", "{b}.experts.down_proj"});
}

std::string expert_name(int expert, const std::string& projection, int layer = 0) {
  return "model.layers." + std::to_string(layer) + ".mlp.experts." + std::to_string(expert) + "." +
         projection + ".weight";
}

/// The tensor map of a layer that was written to disk and opened again.
struct Mapped {
  explicit Mapped(const SyntheticLayer& written, bool names_only = false) : layer(written) {
    layer.write(dir.path());
    checkpoint = std::make_unique<Checkpoint>(names_only ? Checkpoint::open_names_only(dir.path())
                                                         : Checkpoint::open(dir.path()));
    map = std::make_unique<TensorMap>(TensorMap::build(*checkpoint, layer.config, report));
    findings = report.findings();
  }

  SyntheticLayer layer;
  TempDir dir;
  LoadReport report;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<TensorMap> map;
  std::vector<Finding> findings;
};

/// Expects exactly one finding, of this kind, about this tensor.
void expect_finding(const Mapped& mapped, FindingKind kind, std::string_view tensor,
                    std::initializer_list<std::string_view> parts) {
  ASSERT_EQ(mapped.findings.size(), 1u) << summarize(mapped.report, 10);
  const Finding& finding = mapped.findings[0];
  EXPECT_EQ(to_string(finding.kind), to_string(kind)) << finding.message;
  EXPECT_EQ(finding.tensor, tensor);
  for (const auto part : parts) {
    EXPECT_NE(finding.message.find(part), std::string::npos) << part << " in " << finding.message;
  }
}

void rename(SyntheticLayer& layer, const std::string& from, const std::string& to) {
  layer.find(from).name = to;
}

void copy(SyntheticLayer& layer, const std::string& from, const std::string& to) {
  SyntheticTensor tensor = layer.find(from);
  tensor.name = to;
  layer.tensors.push_back(std::move(tensor));
}

void erase(SyntheticLayer& layer, const std::string& name) {
  std::erase_if(layer.tensors, [&](const SyntheticTensor& tensor) { return tensor.name == name; });
}

std::vector<float> values(size_t count) { return std::vector<float>(count, 0.5F); }

TEST(TensorMapTest, PlacesEveryTensorOfACompleteLayer) {
  const Mapped mapped(qwen());
  EXPECT_TRUE(mapped.findings.empty()) << summarize(mapped.report, 10);
  EXPECT_EQ(mapped.map->counts().total, 16);
  EXPECT_EQ(mapped.map->counts().expert, 15);
  EXPECT_EQ(mapped.map->counts().layer, 1);
  const TensorSource* source = mapped.map->layer(0).expert_source(3, Part::kW2, kWeight);
  ASSERT_NE(source, nullptr);
  EXPECT_EQ(source->name, expert_name(3, "down_proj"));
  EXPECT_NE(mapped.map->layer(0).single(Part::kRouter, kWeight), nullptr);
}

TEST(TensorMapTest, PlacesAFusedTensorUnderEachOfItsPartsAndExperts) {
  const Mapped mapped(fused_qwen());
  EXPECT_TRUE(mapped.findings.empty()) << summarize(mapped.report, 10);
  const LayerTensors& layer = mapped.map->layer(0);
  for (int e = 0; e < 5; ++e) {
    EXPECT_EQ(layer.expert_source(e, Part::kW1, kWeight),
              layer.expert_source(0, Part::kW3, kWeight));
  }
  EXPECT_EQ(mapped.map->counts().expert, 2);
}

TEST(TensorMapTest, RefusesALayerThatIsNotMoe) {
  const Mapped mapped(qwen());
  expect_error([&] { (void)mapped.map->layer(1); }, ErrorCode::kInvalidArgument, {"layer 1"});
}

TEST(TensorMapTest, FindsAMissingExpertTensor) {
  SyntheticLayer layer = qwen();
  erase(layer, expert_name(2, "up_proj"));
  const Mapped mapped(layer);
  expect_finding(mapped, FindingKind::kMissing, expert_name(2, "up_proj"), {"layer 0", "expert 2"});
  EXPECT_EQ(mapped.findings[0].expert, 2);
  EXPECT_EQ(mapped.findings[0].part, "w3");
}

TEST(TensorMapTest, NamesAMissingFusedTensorOnce) {
  SyntheticLayer layer = fused_qwen();
  erase(layer, "model.layers.0.mlp.experts.gate_up_proj");
  expect_finding(Mapped(layer), FindingKind::kMissing, "model.layers.0.mlp.experts.gate_up_proj",
                 {"missing"});
}

TEST(TensorMapTest, FindsAMissingRouter) {
  SyntheticLayer layer = qwen();
  erase(layer, "model.layers.0.mlp.gate.weight");
  expect_finding(Mapped(layer), FindingKind::kMissing, "model.layers.0.mlp.gate.weight",
                 {"router weight"});
}

TEST(TensorMapTest, FindsAMissingBias) {
  SyntheticLayer layer = qwen();
  copy(layer, expert_name(1, "up_proj"), "model.layers.0.mlp.experts.1.up_proj.bias");
  layer.find("model.layers.0.mlp.experts.1.up_proj.bias").shape = {7};
  layer.find("model.layers.0.mlp.experts.1.up_proj.bias").values.resize(7);
  const Mapped mapped(layer);
  // One bias says that the experts have biases: the other 14 are missing.
  EXPECT_EQ(mapped.findings.size(), 14u) << summarize(mapped.report, 20);
  EXPECT_EQ(mapped.findings[0].kind, FindingKind::kMissing);
}

TEST(TensorMapTest, FindsWhatIsThereTwicePerExpertAndFused) {
  SyntheticLayer layer = qwen();
  layer.add(layer.find_pattern("{b}.experts.down_proj", Orientation::kOutIn), kWeight);
  const Mapped mapped(layer);
  ASSERT_FALSE(mapped.findings.empty());
  for (const Finding& finding : mapped.findings) {
    EXPECT_EQ(finding.kind, FindingKind::kDuplicate) << finding.message;
    EXPECT_NE(finding.message.find("experts.down_proj"), std::string::npos);
  }
}

TEST(TensorMapTest, FindsATensorBesideItsBaseLayerTwin) {
  SyntheticLayer layer = qwen();
  const std::string twin = "model.layers.0.mlp.experts.0.up_proj.base_layer.weight";
  copy(layer, expert_name(0, "up_proj"), twin);
  const Mapped mapped(layer);
  ASSERT_EQ(mapped.findings.size(), 1u) << summarize(mapped.report, 10);
  EXPECT_EQ(mapped.findings[0].kind, FindingKind::kDuplicate);
}

TEST(TensorMapTest, ReadsBaseLayerNames) {
  SyntheticLayer layer = qwen();
  for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
    const std::string stem = std::string("model.layers.0.mlp.experts.0.") + projection;
    rename(layer, stem + ".weight", stem + ".base_layer.weight");
  }
  const Mapped mapped(layer);
  EXPECT_TRUE(mapped.findings.empty()) << summarize(mapped.report, 10);
}

TEST(TensorMapTest, FindsAnUnknownTensorInTheBlock) {
  SyntheticLayer layer = qwen();
  const std::string name = "model.layers.0.mlp.experts.0.up_proj.weight_scale";
  copy(layer, expert_name(0, "up_proj"), name);
  expect_finding(Mapped(layer), FindingKind::kUnknown, name, {name, "model.safetensors"});
}

TEST(TensorMapTest, FindsAnExpertBehindTheLast) {
  SyntheticLayer layer = qwen();
  copy(layer, expert_name(0, "up_proj"), expert_name(5, "up_proj"));
  expect_finding(Mapped(layer), FindingKind::kUnknown, expert_name(5, "up_proj"),
                 {"experts 0 to 4"});
}

TEST(TensorMapTest, FindsALayerBehindTheLast) {
  SyntheticLayer layer = qwen();
  copy(layer, expert_name(0, "up_proj"), expert_name(0, "up_proj", 1));
  expect_finding(Mapped(layer), FindingKind::kUnknown, expert_name(0, "up_proj", 1),
                 {"layers 0 to 0"});
}

TEST(TensorMapTest, FindsAnExpertInADenseLayer) {
  SyntheticLayer layer = qwen();
  layer.config.num_layers = 2;
  copy(layer, expert_name(0, "up_proj"), expert_name(0, "up_proj", 1));
  expect_finding(Mapped(layer), FindingKind::kUnknown, expert_name(0, "up_proj", 1),
                 {"layer 1 is dense"});
}

TEST(TensorMapTest, LeavesTheMlpOfADenseLayerToTheModel) {
  SyntheticLayer layer = qwen();
  layer.config.num_layers = 2;
  copy(layer, expert_name(0, "up_proj"), "model.layers.1.mlp.up_proj.weight");
  copy(layer, expert_name(0, "up_proj"), "model.layers.1.self_attn.q_proj.weight");
  const Mapped mapped(layer);
  EXPECT_TRUE(mapped.findings.empty()) << summarize(mapped.report, 10);
  EXPECT_EQ(mapped.map->counts().model, 2);
}

TEST(TensorMapTest, FindsTheRouterOfADenseLayer) {
  SyntheticLayer layer = qwen();
  layer.config.num_layers = 2;
  copy(layer, "model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight");
  expect_finding(Mapped(layer), FindingKind::kUnknown, "model.layers.1.mlp.gate.weight",
                 {"layer 1 is dense"});
}

TEST(TensorMapTest, FindsAnExpertOutsideTheStack) {
  SyntheticLayer layer = qwen();
  const std::string name = "vision.blocks.0.experts.0.up.weight";
  copy(layer, expert_name(0, "up_proj"), name);
  expect_finding(Mapped(layer), FindingKind::kUnknown, name, {"not under a MoE layer"});
}

TEST(TensorMapTest, FindsASecondPrefix) {
  SyntheticLayer layer = qwen();
  copy(layer, expert_name(0, "up_proj"), "talker." + expert_name(0, "up_proj"));
  const Mapped mapped(layer);
  ASSERT_FALSE(mapped.findings.empty());
  const bool named = std::any_of(mapped.findings.begin(), mapped.findings.end(), [](const auto& f) {
    return f.kind == FindingKind::kPrefix && f.message.find("talker.model.") != std::string::npos;
  });
  EXPECT_TRUE(named) << summarize(mapped.report, 10);
  EXPECT_EQ(mapped.map->names().prefix(), "model.");
}

TEST(TensorMapTest, FindsSharedExpertsThatTheConfigDoesNotHave) {
  SyntheticLayer layer =
      make_layer("deepseek_v2", {"{b}.experts.gate_up_proj", "{b}.experts.down_proj"});
  layer.spec().shared.intermediate_size = 9;
  layer.add_single(Part::kSharedW1);
  layer.spec().shared.intermediate_size = 0;
  expect_finding(Mapped(layer), FindingKind::kUnknown,
                 "model.layers.0.mlp.shared_experts.gate_proj.weight", {"no shared_w1 weight"});
}

TEST(TensorMapTest, FindsAnUpProjectionWhereThereIsNoGate) {
  SyntheticLayer layer = qwen();
  layer.spec().activation.kind = Activation::kRelu2NoMul;
  const Mapped mapped(layer);
  EXPECT_EQ(mapped.findings.size(), 5u);
  EXPECT_EQ(mapped.findings[0].kind, FindingKind::kUnknown);
  EXPECT_NE(mapped.findings[0].message.find("no gate"), std::string::npos);
}

TEST(TensorMapTest, ReadsBiasesOfTheLatentProjections) {
  SyntheticLayer layer = SyntheticLayer::create("nemotron_h", DType::kBF16);
  layer.spec().activation.kind = Activation::kRelu2NoMul;
  layer.spec().expert_hidden_size = 4;
  layer.add_single(Part::kRouter);
  for (const auto name : {"{b}.experts.{e}.up_proj", "{b}.experts.{e}.down_proj"}) {
    layer.add(layer.find_pattern(name, Orientation::kOutIn), kWeight);
  }
  const std::string block = "model.layers.0.mixer.";
  layer.tensors.push_back({block + "fc1_latent_proj.weight", DType::kBF16, {4, 6}, values(24)});
  layer.tensors.push_back({block + "fc1_latent_proj.bias", DType::kBF16, {4}, values(4)});
  layer.tensors.push_back({block + "fc2_latent_proj.weight", DType::kBF16, {6, 4}, values(24)});
  layer.tensors.push_back({block + "fc2_latent_proj.bias", DType::kBF16, {6}, values(6)});
  const Mapped mapped(layer);
  EXPECT_TRUE(mapped.findings.empty()) << summarize(mapped.report, 10);
  EXPECT_NE(mapped.map->layer(0).single(Part::kLatentIn, TensorKind::kBias), nullptr);
}

TEST(TensorMapTest, ReportsEverythingInOneRun) {
  SyntheticLayer layer = qwen();
  erase(layer, expert_name(4, "down_proj"));
  copy(layer, expert_name(0, "up_proj"), expert_name(9, "up_proj"));
  layer.find(expert_name(1, "up_proj")).shape = {6, 7};
  EXPECT_EQ(Mapped(layer).findings.size(), 3u);
}

}  // namespace
}  // namespace gantry::test
