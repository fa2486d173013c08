// What TensorMap says about shapes, dtypes, orientation, and tensors that are not loaded.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "loader/tensor_map.h"
#include "tests/support/synthetic_layer.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

constexpr auto kWeight = TensorKind::kWeight;
constexpr const char* kGateUp = "model.layers.0.mlp.experts.gate_up_proj";
constexpr const char* kDown = "model.layers.0.mlp.experts.down_proj";

SyntheticLayer fused(std::string_view model_type, Orientation orientation = Orientation::kOutIn,
                     int64_t intermediate = 7, int64_t hidden = 6) {
  SyntheticLayer layer = SyntheticLayer::create(model_type, DType::kBF16);
  layer.spec().intermediate_size = intermediate;
  layer.spec().hidden_size = layer.spec().expert_hidden_size = hidden;
  layer.add_single(Part::kRouter);
  for (const auto name : {"{b}.experts.gate_up_proj", "{b}.experts.down_proj"}) {
    layer.add(layer.find_pattern(name, orientation), kWeight);
  }
  return layer;
}

SyntheticLayer per_expert() {
  SyntheticLayer layer = SyntheticLayer::create("deepseek_v3", DType::kBF16);
  layer.spec().correction_bias = true;
  layer.add_single(Part::kRouter);
  layer.add_single(Part::kCorrectionBias);
  for (const auto name : {"gate_proj", "up_proj", "down_proj"}) {
    layer.add(layer.find_pattern(std::string("{b}.experts.{e}.") + name, Orientation::kOutIn),
              kWeight);
  }
  return layer;
}

void add_copy(SyntheticLayer& layer, const std::string& from, const std::string& to) {
  SyntheticTensor tensor = layer.find(from);
  tensor.name = to;
  layer.tensors.push_back(std::move(tensor));
}

/// Findings and notes about a layer that was written to disk.
struct Checked {
  explicit Checked(const SyntheticLayer& layer, bool names_only = false) {
    layer.write(dir.path());
    const Checkpoint checkpoint =
        names_only ? Checkpoint::open_names_only(dir.path()) : Checkpoint::open(dir.path());
    const TensorMap map = TensorMap::build(checkpoint, layer.config, report);
    counts = map.counts();
    findings = report.findings();
  }

  [[nodiscard]] bool has_note(std::string_view part) const {
    const auto& notes = report.notes();
    return std::any_of(notes.begin(), notes.end(), [&](const std::string& note) {
      return note.find(part) != std::string::npos;
    });
  }

  TempDir dir;
  LoadReport report;
  NameCounts counts;
  std::vector<Finding> findings;
};

void expect_one(const Checked& checked, FindingKind kind, std::string_view tensor,
                std::initializer_list<std::string_view> parts) {
  ASSERT_EQ(checked.findings.size(), 1u) << summarize(checked.report, 10);
  EXPECT_EQ(to_string(checked.findings[0].kind), to_string(kind));
  EXPECT_EQ(checked.findings[0].tensor, tensor);
  EXPECT_EQ(checked.findings[0].file, "model.safetensors");
  for (const auto part : parts) {
    EXPECT_NE(checked.findings[0].message.find(part), std::string::npos)
        << part << " in " << checked.findings[0].message;
  }
}

TEST(TensorShapeTest, AcceptsWhatTheFamilyWrites) {
  EXPECT_TRUE(Checked(fused("qwen3_moe")).findings.empty());
  EXPECT_TRUE(Checked(fused("llama4_text", Orientation::kInOut)).findings.empty());
  EXPECT_TRUE(Checked(per_expert()).findings.empty());
}

TEST(TensorShapeTest, FindsAnotherSize) {
  SyntheticLayer layer = per_expert();
  SyntheticTensor& tensor = layer.find("model.layers.0.mlp.experts.2.up_proj.weight");
  tensor.shape = {8, 6};
  tensor.values.resize(48);
  expect_one(Checked(layer), FindingKind::kShape, tensor.name, {"expected [7, 6]", "found [8, 6]"});
}

TEST(TensorShapeTest, FindsAnotherRank) {
  SyntheticLayer layer = per_expert();
  SyntheticTensor& tensor = layer.find("model.layers.0.mlp.experts.2.up_proj.weight");
  tensor.shape = {1, 7, 6};
  expect_one(Checked(layer), FindingKind::kShape, tensor.name, {"found [1, 7, 6]"});
  tensor.shape = {42};
  expect_one(Checked(layer), FindingKind::kShape, tensor.name, {"found [42]"});
}

TEST(TensorShapeTest, SaysThatAFusedTensorIsTransposed) {
  SyntheticLayer layer = fused("qwen3_moe");
  layer.find(kGateUp).shape = {5, 6, 14};
  expect_one(Checked(layer), FindingKind::kShape, kGateUp,
             {"expected [5, 14, 6]", "found [5, 6, 14]", "transpose"});
}

TEST(TensorShapeTest, DoesNotTransposeWhereTheFamilyHasOneOrientation) {
  SyntheticLayer layer = per_expert();
  SyntheticTensor& tensor = layer.find("model.layers.0.mlp.experts.0.down_proj.weight");
  tensor.shape = {7, 6};
  expect_one(Checked(layer), FindingKind::kShape, tensor.name, {"expected [6, 7]"});
}

TEST(TensorShapeTest, AcceptsACorrectionBiasWithALeadingOne) {
  SyntheticLayer layer = per_expert();
  layer.find("model.layers.0.mlp.gate.e_score_correction_bias").shape = {1, 5};
  EXPECT_TRUE(Checked(layer).findings.empty());
}

TEST(TensorShapeTest, FindsACorrectionBiasOfTwoColumns) {
  SyntheticLayer layer = per_expert();
  SyntheticTensor& tensor = layer.find("model.layers.0.mlp.gate.e_score_correction_bias");
  tensor.shape = {5, 1};
  expect_one(Checked(layer), FindingKind::kShape, tensor.name, {"expected [5]", "found [5, 1]"});
}

TEST(TensorOrientationTest, ReadsBothOrientationsOfQwen3Vl) {
  const Checked published(fused("qwen3_vl_moe_text", Orientation::kInOut));
  EXPECT_TRUE(published.findings.empty());
  EXPECT_FALSE(published.has_note("[out, in]"));
  const Checked resaved(fused("qwen3_vl_moe_text", Orientation::kOutIn));
  EXPECT_TRUE(resaved.findings.empty()) << summarize(resaved.report, 3);
  EXPECT_TRUE(resaved.has_note("read as [out, in]"));
}

TEST(TensorOrientationTest, RefusesASquareThatFitsBoth) {
  expect_one(Checked(fused("qwen3_vl_moe_text", Orientation::kInOut, 7, 14)), FindingKind::kShape,
             kGateUp, {"[5, 14, 14]", "both orientations"});
  expect_one(Checked(fused("qwen3_vl_moe_text", Orientation::kInOut, 6, 6)), FindingKind::kShape,
             kDown, {"[5, 6, 6]", "both orientations"});
}

TEST(TensorOrientationTest, TrustsASquareWhereTheFamilyHasOneOrientation) {
  EXPECT_TRUE(Checked(fused("qwen3_moe", Orientation::kOutIn, 6, 6)).findings.empty());
  EXPECT_TRUE(Checked(fused("llama4_text", Orientation::kInOut, 7, 14)).findings.empty());
}

TEST(TensorDTypeTest, FindsTheOddOneOut) {
  SyntheticLayer layer = per_expert();
  SyntheticTensor& tensor = layer.find("model.layers.0.mlp.experts.3.up_proj.weight");
  tensor.dtype = DType::kF16;
  expect_one(Checked(layer), FindingKind::kDType, tensor.name, {"expected bf16", "found f16"});
}

TEST(TensorDTypeTest, FindsWeightsThatAreNoPlainFloats) {
  for (const DType dtype : {DType::kI8, DType::kF8E4M3, DType::kI64, DType::kF64, DType::kBool}) {
    SyntheticLayer layer = per_expert();
    SyntheticTensor& tensor = layer.find("model.layers.0.mlp.experts.3.up_proj.weight");
    tensor.dtype = dtype;
    expect_one(Checked(layer), FindingKind::kDType, tensor.name,
               {"expected f32, f16 or bf16", std::string(to_string(dtype))});
  }
}

TEST(TensorDTypeTest, LetsTheRouterHaveItsOwn) {
  SyntheticLayer layer = per_expert();
  layer.find("model.layers.0.mlp.gate.weight").dtype = DType::kF32;
  layer.find("model.layers.0.mlp.gate.e_score_correction_bias").dtype = DType::kF32;
  EXPECT_TRUE(Checked(layer).findings.empty());
}

TEST(NamesOnlyTest, ChecksNamesWithoutShapes) {
  SyntheticLayer layer = fused("qwen3_moe");
  layer.find(kGateUp).shape = {5, 6, 14};
  layer.find(kDown).dtype = DType::kI16;
  EXPECT_TRUE(Checked(layer, /*names_only=*/true).findings.empty());
  layer.find(kDown).name = "model.layers.0.mlp.experts.down";
  const Checked renamed(layer, /*names_only=*/true);
  ASSERT_EQ(renamed.findings.size(), 2u) << summarize(renamed.report, 5);
  EXPECT_TRUE(renamed.findings[0].file.empty());
}

SyntheticLayer longcat() {
  SyntheticLayer layer = SyntheticLayer::create("longcat_flash", DType::kBF16);
  layer.spec().routing.num_zero_experts = 3;
  layer.spec().routing.num_experts = 8;
  layer.add_single(Part::kRouter);
  for (const auto name : {"gate_proj", "up_proj", "down_proj"}) {
    layer.add(layer.find_pattern(std::string("{b}.experts.{e}.") + name, Orientation::kOutIn),
              kWeight);
  }
  return layer;
}

TEST(IgnoredTensorTest, AreThoseOfZeroExperts) {
  SyntheticLayer layer = longcat();
  for (const char* id : {"5", "7"}) {
    add_copy(layer, "model.layers.0.mlp.experts.0.up_proj.weight",
             std::string("model.layers.0.mlp.experts.") + id + ".up_proj.weight");
  }
  const Checked checked(layer);
  EXPECT_TRUE(checked.findings.empty()) << summarize(checked.report, 5);
  EXPECT_EQ(checked.counts.ignored, 2);
  EXPECT_TRUE(checked.has_note("experts 5 to 7 are identity experts"));
}

TEST(IgnoredTensorTest, AreNotThoseBehindTheZeroExperts) {
  SyntheticLayer layer = longcat();
  const std::string name = "model.layers.0.mlp.experts.8.up_proj.weight";
  add_copy(layer, "model.layers.0.mlp.experts.0.up_proj.weight", name);
  expect_one(Checked(layer), FindingKind::kUnknown, name, {"experts 0 to 4"});
}

TEST(IgnoredTensorTest, AreThoseOfMtpLayersBehindTheStack) {
  SyntheticLayer layer = per_expert();
  layer.config.num_mtp_layers = 1;
  add_copy(layer, "model.layers.0.mlp.experts.0.up_proj.weight",
           "model.layers.1.mlp.experts.0.up_proj.weight");
  add_copy(layer, "model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.1.eh_proj.weight");
  const Checked checked(layer);
  EXPECT_TRUE(checked.findings.empty()) << summarize(checked.report, 5);
  EXPECT_EQ(checked.counts.auxiliary, 2);
  EXPECT_TRUE(checked.has_note("2 tensors of multi-token prediction layers"));
}

TEST(IgnoredTensorTest, AreThoseOfAnMtpModule) {
  SyntheticLayer layer = per_expert();
  add_copy(layer, "model.layers.0.mlp.experts.0.up_proj.weight",
           "mtp.layers.0.mlp.experts.0.up_proj.weight");
  const Checked checked(layer);
  EXPECT_TRUE(checked.findings.empty()) << summarize(checked.report, 5);
  EXPECT_EQ(checked.counts.auxiliary, 1);
}

TEST(IgnoredTensorTest, AreNotedWhenDeclaredButAbsent) {
  SyntheticLayer layer = per_expert();
  layer.config.num_mtp_layers = 1;
  EXPECT_TRUE(Checked(layer).has_note("no tensors of the declared"));
}

TEST(IgnoredTensorTest, AreThoseThatNothingIsComputedFrom) {
  SyntheticLayer layer = SyntheticLayer::create("deepseek_v4", DType::kBF16);
  layer.spec().correction_bias = true;
  layer.add_single(Part::kRouter);
  layer.add_single(Part::kCorrectionBias);
  layer.add_single(Part::kOther);
  for (const auto name : {"{b}.experts.{e}.w1", "{b}.experts.{e}.w3", "{b}.experts.{e}.w2"}) {
    layer.add(layer.find_pattern(name, Orientation::kOutIn), kWeight);
  }
  const Checked checked(layer);
  EXPECT_TRUE(checked.findings.empty()) << summarize(checked.report, 5);
  EXPECT_EQ(checked.counts.ignored, 1);
  EXPECT_TRUE(checked.has_note("bias_vl"));
}

}  // namespace
}  // namespace gantry::test
