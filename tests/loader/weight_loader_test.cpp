#include "loader/weight_loader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/synthetic_layer.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

constexpr auto kWeight = TensorKind::kWeight;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Five experts with one tensor each, a correction bias and shared experts.
SyntheticLayer deepseek() {
  SyntheticLayer layer = SyntheticLayer::create("deepseek_v3", DType::kBF16);
  layer.spec().correction_bias = true;
  layer.spec().shared.intermediate_size = 9;
  layer.add_single(Part::kRouter);
  layer.add_single(Part::kCorrectionBias);
  for (const auto name : {"gate_proj", "up_proj", "down_proj"}) {
    layer.add(layer.find_pattern(std::string("{b}.experts.{e}.") + name, Orientation::kOutIn),
              kWeight);
    layer.add(layer.find_pattern(std::string("{b}.shared_experts.") + name, Orientation::kOutIn),
              kWeight);
  }
  return layer;
}

SyntheticLayer fused() {
  SyntheticLayer layer = SyntheticLayer::create("qwen3_moe", DType::kF32);
  layer.add_single(Part::kRouter);
  for (const auto name : {"{b}.experts.gate_up_proj", "{b}.experts.down_proj"}) {
    layer.add(layer.find_pattern(name, Orientation::kOutIn), kWeight);
  }
  return layer;
}

/// A hash layer of 4 token ids with two experts each.
SyntheticLayer hashed(DType dtype, std::vector<float> ids) {
  SyntheticLayer layer = SyntheticLayer::create("deepseek_v4", DType::kBF16);
  layer.spec().hash_table = true;
  layer.spec().vocab_size = 4;
  layer.add_single(Part::kRouter);
  for (const auto name : {"{b}.experts.{e}.w1", "{b}.experts.{e}.w3", "{b}.experts.{e}.w2"}) {
    layer.add(layer.find_pattern(name, Orientation::kOutIn), kWeight);
  }
  layer.tensors.push_back({"model.layers.0.ffn.gate.tid2eid", dtype, {4, 2}, std::move(ids)});
  return layer;
}

/// A layer on disk, opened and mapped without findings.
struct Loadable {
  explicit Loadable(const SyntheticLayer& written) : layer(written) {
    layer.write(dir.path());
    checkpoint = std::make_unique<Checkpoint>(Checkpoint::open(dir.path()));
    map = std::make_unique<TensorMap>(TensorMap::build(*checkpoint, layer.config, report));
    EXPECT_TRUE(report.ok()) << summarize(report, 5);
    loader = std::make_unique<WeightLoader>(*checkpoint, layer.config, *map);
  }

  MoeLayerWeights load(const ParallelConfig& parallel = {}, const LoadOptions& options = {}) {
    return loader->load_layer(0, parallel, experts(parallel.ep_size), options, report, stats);
  }

  [[nodiscard]] static ExpertMap experts(int ep_size) {
    return ExpertMap::create(5, ep_size, Placement::kLinear);
  }

  SyntheticLayer layer;
  TempDir dir;
  LoadReport report;
  LoadStats stats;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<TensorMap> map;
  std::unique_ptr<WeightLoader> loader;
};

TEST(WeightLoaderTest, ReadsSmallTensorsOnEveryRank) {
  Loadable loadable(deepseek());
  const MoeLayerWeights weights =
      loadable.load({.tp_size = 1, .ep_size = 2, .dp_size = 1, .rank = 1});
  EXPECT_EQ(weights.router.size(), 30u);
  EXPECT_EQ(weights.router[29], 29.0F);
  EXPECT_EQ(weights.correction_bias.size(), 5u);
  EXPECT_EQ(weights.correction_bias[4], 4.0F);
  EXPECT_EQ(weights.router_bias.size(), 0u);
  EXPECT_EQ(weights.shared.size(), 0u);  // EP rank 0 adds them for all
}

TEST(WeightLoaderTest, ReadsSharedExpertsOncePerGroupOfTokens) {
  Loadable loadable(deepseek());
  std::vector<bool> has_shared;
  for (int rank = 0; rank < 4; ++rank) {
    has_shared.push_back(
        loadable.load({.tp_size = 1, .ep_size = 4, .dp_size = 2, .rank = rank}).shared.size() > 0);
  }
  EXPECT_EQ(has_shared, (std::vector<bool>{true, false, true, false}));
}

TEST(WeightLoaderTest, AddsUpItsStatistics) {
  Loadable loadable(deepseek());
  loadable.load();
  const LoadStats once = loadable.stats;
  EXPECT_EQ(once.bytes_read, loadable.checkpoint->total_bytes());
  loadable.load();
  EXPECT_EQ(loadable.stats.bytes_read, 2 * once.bytes_read);
  EXPECT_EQ(loadable.stats.bytes_owned, 2 * once.bytes_owned);
}

TEST(WeightLoaderTest, TellsItsProgressInBytesRead) {
  Loadable loadable(deepseek());
  std::atomic<int64_t> bytes = 0;
  LoadOptions options;
  options.threads.count = 2;
  options.progress = [&](int64_t more) { bytes += more; };
  loadable.load({}, options);
  EXPECT_EQ(bytes, loadable.stats.bytes_read);
}

TEST(WeightLoaderTest, FindsNaNInAnExpertsTensor) {
  SyntheticLayer layer = deepseek();
  layer.find("model.layers.0.mlp.experts.3.up_proj.weight").values[11] = kNaN;
  Loadable loadable(layer);
  loadable.load();
  const std::vector<Finding> findings = loadable.report.findings();
  ASSERT_EQ(findings.size(), 1u) << summarize(loadable.report, 5);
  EXPECT_EQ(findings[0].kind, FindingKind::kNonFinite);
  EXPECT_EQ(findings[0].tensor, "model.layers.0.mlp.experts.3.up_proj.weight");
  EXPECT_EQ(findings[0].file, "model.safetensors");
  EXPECT_EQ(findings[0].expert, 3);
  EXPECT_EQ(findings[0].layer, 0);
  EXPECT_NE(findings[0].message.find("element 11 is NaN"), std::string::npos);
}

TEST(WeightLoaderTest, FindsInfinityInAFusedTensorAndNamesTheExpert) {
  SyntheticLayer layer = fused();
  // Expert 2 of [5, 14, 6], row 9: an up row.
  layer.find("model.layers.0.mlp.experts.gate_up_proj").values[(2 * 14 + 9) * 6 + 1] = -kInfinity;
  for (const int64_t staging : {int64_t{1}, int64_t{1} << 20}) {
    Loadable loadable(layer);
    LoadOptions options;
    options.staging_bytes = staging;
    loadable.load({}, options);
    const std::vector<Finding> findings = loadable.report.findings();
    ASSERT_EQ(findings.size(), 1u) << summarize(loadable.report, 5);
    EXPECT_EQ(findings[0].expert, 2);
    EXPECT_NE(findings[0].message.find("element 223 is infinite, expert 2"), std::string::npos)
        << findings[0].message;
  }
}

TEST(WeightLoaderTest, FindsNaNInSmallTensors) {
  SyntheticLayer layer = deepseek();
  layer.find("model.layers.0.mlp.gate.weight").values[7] = kNaN;
  layer.find("model.layers.0.mlp.gate.e_score_correction_bias").values[4] = kInfinity;
  Loadable loadable(layer);
  loadable.load();
  const std::vector<Finding> findings = loadable.report.findings();
  ASSERT_EQ(findings.size(), 2u) << summarize(loadable.report, 5);
  EXPECT_EQ(findings[0].part, "correction_bias");
  EXPECT_EQ(findings[1].part, "router");
}

TEST(WeightLoaderTest, LoadsNonFiniteWeightsWhenNotAskedToCheck) {
  SyntheticLayer layer = deepseek();
  layer.find("model.layers.0.mlp.experts.3.up_proj.weight").values[11] = kNaN;
  layer.find("model.layers.0.mlp.gate.weight").values[7] = kNaN;
  Loadable loadable(layer);
  LoadOptions options;
  options.check_finite = false;
  loadable.load({}, options);
  EXPECT_TRUE(loadable.report.ok());
}

TEST(WeightLoaderTest, DoesNotReadTheExpertsOfOtherRanks) {
  SyntheticLayer layer = deepseek();
  layer.find("model.layers.0.mlp.experts.4.up_proj.weight").values[0] = kNaN;
  Loadable loadable(layer);
  loadable.load({.tp_size = 1, .ep_size = 2, .dp_size = 1, .rank = 0});
  EXPECT_TRUE(loadable.report.ok());
  loadable.load({.tp_size = 1, .ep_size = 2, .dp_size = 1, .rank = 1});
  EXPECT_FALSE(loadable.report.ok());
}

TEST(WeightLoaderTest, FailsOnAFileThatShrankAfterItWasOpened) {
  Loadable loadable(deepseek());
  const auto file = loadable.dir / "model.safetensors";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 40);
  expect_error([&] { loadable.load(); }, ErrorCode::kIo, {"model.safetensors"});
}

TEST(WeightLoaderTest, RefusesSplitsThatLeaveARankWithoutWork) {
  Loadable loadable(deepseek());
  expect_error([&] { loadable.load({.tp_size = 8, .ep_size = 1, .dp_size = 1, .rank = 0}); },
               ErrorCode::kInvalidArgument, {"layer 0", "tp 8 > intermediate size 7"});
  expect_error([&] { loadable.load({.tp_size = 1, .ep_size = 6, .dp_size = 1, .rank = 0}); },
               ErrorCode::kInvalidArgument, {"ep 6 > 5 experts"});
}

TEST(WeightLoaderTest, RefusesSplitsOfNarrowSharedExperts) {
  MoeLayerSpec spec = deepseek().spec();
  spec.shared.intermediate_size = 3;
  EXPECT_EQ(infeasible_reason(spec, 4, 1), "tp 4 > shared intermediate size 3");
  EXPECT_EQ(infeasible_reason(spec, 3, 5), "");
}

TEST(WeightLoaderTest, RefusesAMapOfAnotherModel) {
  Loadable loadable(deepseek());
  const ExpertMap four = ExpertMap::create(4, 1, Placement::kLinear);
  expect_error([&] { (void)loadable.loader->plan(0, {}, four); }, ErrorCode::kInvalidArgument,
               {"expert map for 5 experts", "found 4"});
  const ExpertMap two_ranks = ExpertMap::create(5, 2, Placement::kLinear);
  expect_error([&] { (void)loadable.loader->plan(0, {}, two_ranks); }, ErrorCode::kInvalidArgument,
               {"on 1 ranks"});
}

TEST(WeightLoaderTest, RefusesALayerThatIsNotMoe) {
  Loadable loadable(deepseek());
  expect_error([&] { (void)loadable.loader->plan(1, {}, Loadable::experts(1)); },
               ErrorCode::kInvalidArgument, {"layer 1 is not a MoE layer"});
}

TEST(WeightLoaderTest, ReadsHashTablesOfBothWidths) {
  const std::vector<float> ids = {0, 1, 2, 3, 4, 0, 1, 2};
  for (const DType dtype : {DType::kI32, DType::kI64}) {
    Loadable loadable(hashed(dtype, ids));
    const MoeLayerWeights weights = loadable.load();
    EXPECT_TRUE(loadable.report.ok()) << summarize(loadable.report, 5);
    ASSERT_EQ(weights.hash_table.size(), 8u);
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ(weights.hash_table[i], static_cast<int32_t>(ids[i]));
    }
  }
}

TEST(WeightLoaderTest, FindsHashTableEntriesThatAreNoExperts) {
  for (const DType dtype : {DType::kI32, DType::kI64}) {
    for (const float bad : {5.0F, -1.0F}) {
      Loadable loadable(hashed(dtype, {0, 1, 2, bad, 4, 0, 1, 2}));
      loadable.load();
      const std::vector<Finding> findings = loadable.report.findings();
      ASSERT_EQ(findings.size(), 1u);
      EXPECT_EQ(findings[0].kind, FindingKind::kValue);
      EXPECT_EQ(findings[0].tensor, "model.layers.0.ffn.gate.tid2eid");
      EXPECT_EQ(findings[0].file, "model.safetensors");
      EXPECT_NE(findings[0].message.find("element 3"), std::string::npos) << findings[0].message;
    }
  }
}

TEST(WeightLoaderTest, DoesNotTakeAnI64IdForItsLow32Bits) {
  Loadable loadable(hashed(DType::kI64, {0, 1, 2, 4294967296.0F, 4, 0, 1, 2}));
  loadable.load();
  ASSERT_EQ(loadable.report.findings().size(), 1u);
  EXPECT_NE(loadable.report.findings()[0].message.find("4294967296"), std::string::npos);
}

}  // namespace
}  // namespace gantry::test
