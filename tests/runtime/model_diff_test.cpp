// Differences of checkpoints, against what the exporters' references state.

#include "runtime/model_diff.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <regex>
#include <set>

#include "kernels/base/error.h"
#include "kernels/base/float_convert.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

namespace fs = std::filesystem;

// The checkpoint that a quantized golden was made from, or nothing where it is not stored here.
fs::path source_of(const std::string& golden) {
  if (golden.find("gpt_oss") != std::string::npos || golden.find("i256") != std::string::npos) {
    return {};
  }
  const bool mixtral = golden.find("mixtral") != std::string::npos;
  return golden_root() / "sources" / (mixtral ? "mixtral" : "qwen3_moe");
}

struct StatedErrors {
  double w1 = -1.0;
  double w3 = -1.0;
  double w2 = -1.0;
};

// "relative Frobenius error ... (largest expert): gate 0.09543, up 0.09531, down 0.09554"
StatedErrors read_stated(const fs::path& directory) {
  std::ifstream file(directory / "reference.txt");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const std::regex line(R"(largest expert\): gate ([\d.]+), up ([\d.]+), down ([\d.]+))");
  std::smatch match;
  if (!std::regex_search(text, match, line)) return {};
  return {std::stod(match[1]), std::stod(match[2]), std::stod(match[3])};
}

double largest(const LayerDifference& layer, Part part) {
  double error = 0.0;
  for (const MatrixDifference& matrix : layer.matrices) {
    if (matrix.part == part) error = std::max(error, matrix.weight.relative());
  }
  return error;
}

LayerDifference diff(const fs::path& a, const fs::path& b, const DiffSettings& settings) {
  MoeModel model_a(a, false);
  MoeModel model_b(b, false);
  EXPECT_TRUE(model_a.report().ok());
  EXPECT_TRUE(model_b.report().ok());
  require_comparable(model_a, model_b);
  return diff_layer(model_a, model_b, model_a.config().layers[0].layer, settings);
}

DiffSettings weights_only() {
  DiffSettings settings;
  settings.num_tokens = 0;
  return settings;
}

TEST(ModelDiffTest, ShowsTheWeightErrorThatTheExportersReferenceStates) {
  int compared = 0;
  for (const Golden& golden : quant_goldens()) {
    const fs::path source = source_of(golden.directory.filename().string());
    if (source.empty()) continue;
    const StatedErrors stated = read_stated(golden.directory);
    ASSERT_GT(stated.w1, 0.0) << golden.name;
    DiffSettings settings = weights_only();
    settings.smoothed = golden.name.find("gptqmodel_awq") != std::string::npos;
    const LayerDifference layer = diff(source, golden.directory, settings);
    // Five decimals are stated; half of the last one, and as much for their f32 sums.
    EXPECT_NEAR(largest(layer, Part::kW1), stated.w1, 1e-5) << golden.name;
    EXPECT_NEAR(largest(layer, Part::kW3), stated.w3, 1e-5) << golden.name;
    EXPECT_NEAR(largest(layer, Part::kW2), stated.w2, 1e-5) << golden.name;
    EXPECT_EQ(layer.num_too_large(), 0) << golden.name;
    ++compared;
  }
  EXPECT_GE(compared, 14);
}

TEST(ModelDiffTest, SpellingsOfOneModelAreEqual) {
  const fs::path families = golden_root() / "families";
  int pairs = 0;
  for (const Golden& golden : family_goldens()) {
    const fs::path fused = families / (golden.directory.filename().string() + "-fused");
    if (!fs::exists(fused)) continue;
    MoeModel a(golden.directory, false);
    MoeModel b(fused, false);
    DiffSettings settings;
    settings.num_tokens = 3;
    for (const MoeLayerSpec& spec : a.config().layers) {
      const LayerDifference layer = diff_layer(a, b, spec.layer, settings);
      for (const MatrixDifference& matrix : layer.matrices)
        EXPECT_TRUE(matrix.weight.equal()) << golden.name << " " << matrix.name_a;
      ASSERT_TRUE(layer.output.has_value());
      EXPECT_TRUE(layer.output->output.equal()) << golden.name;
    }
    const ModelTensorDifference rest = diff_model_tensors(a, b, settings);
    EXPECT_FALSE(rest.tensors.empty());
    EXPECT_TRUE(rest.only_in_a.empty() && rest.only_in_b.empty() && rest.not_compared.empty());
    ++pairs;
  }
  EXPECT_GE(pairs, 2);
}

// A copy of a golden in a folder of its own, damaged by `change`.
class DamagedTest : public testing::Test {
 protected:
  void TearDown() override { fs::remove_all(directory_); }

  fs::path damaged(const fs::path& original,
                   const std::function<void(MutableCheckpoint&)>& change) {
    MutableCheckpoint checkpoint = MutableCheckpoint::read(original);
    change(checkpoint);
    fs::create_directories(directory_);
    checkpoint.write(directory_);
    return directory_;
  }

  static void exchange(MutableCheckpoint& checkpoint, const std::string& x, const std::string& y) {
    int exchanged = 0;
    for (auto& [name, tensor] : checkpoint.tensors) {
      const size_t at = name.find(x);
      if (at == std::string::npos) continue;
      std::string other = name;
      other.replace(at, x.size(), y);
      ASSERT_TRUE(checkpoint.tensors.contains(other)) << other;
      std::swap(tensor, checkpoint.tensors[other]);
      ++exchanged;
    }
    ASSERT_GT(exchanged, 0) << x;
  }

 private:
  fs::path directory_ = fs::path(testing::TempDir()) / "model_diff";
};

TEST_F(DamagedTest, ExchangedExpertsAreNamedInEveryScheme) {
  for (const Golden& golden : quant_goldens()) {
    const std::string folder = golden.directory.filename().string();
    const fs::path source = source_of(folder);
    // Stacked experts have no names of their own to exchange.
    if (source.empty() || folder.find("fused") != std::string::npos) continue;
    const fs::path b = damaged(golden.directory, [](MutableCheckpoint& checkpoint) {
      exchange(checkpoint, ".experts.1.", ".experts.3.");
    });
    const LayerDifference layer = diff(source, b, weights_only());
    std::set<std::pair<int, Part>> large;
    for (const MatrixDifference& matrix : layer.matrices) {
      if (matrix.too_large) large.emplace(matrix.expert, matrix.part);
    }
    const std::set<std::pair<int, Part>> exchanged = {{1, Part::kW1}, {1, Part::kW3},
                                                      {1, Part::kW2}, {3, Part::kW1},
                                                      {3, Part::kW3}, {3, Part::kW2}};
    EXPECT_EQ(large, exchanged) << golden.name;
    ASSERT_EQ(layer.origins.size(), 6u) << golden.name;
    for (const MatrixOrigin& origin : layer.origins) {
      EXPECT_TRUE(origin.found) << golden.name;
      EXPECT_EQ(origin.from_expert, origin.expert == 1 ? 3 : 1) << golden.name;
      EXPECT_EQ(origin.from_part, origin.part) << golden.name;
      EXPECT_LT(origin.weight.relative(), 0.5) << golden.name;
    }
  }
}

TEST_F(DamagedTest, GateAndUpExchangedIsToldFromAForeignExpert) {
  const fs::path source = golden_root() / "sources" / "qwen3_moe";
  SeededRng rng;
  SCOPED_TRACE(testing::Message() << "seed " << rng.seed());
  const fs::path b = damaged(source, [&](MutableCheckpoint& checkpoint) {
    exchange(checkpoint, ".experts.2.gate_proj", ".experts.2.up_proj");
    auto& bytes = checkpoint.tensors.at("model.layers.0.mlp.experts.0.down_proj.weight").bytes;
    for (size_t i = 0; i < bytes.size(); i += 2) {
      const uint16_t value = f32_to_bf16(rng.normal(0.0F, 0.06F));
      std::memcpy(bytes.data() + i, &value, 2);
    }
  });
  const LayerDifference layer = diff(source, b, weights_only());
  ASSERT_EQ(layer.origins.size(), 3u);
  EXPECT_EQ(layer.origins[0].part, Part::kW2);
  EXPECT_FALSE(layer.origins[0].found);
  for (const size_t i : {1u, 2u}) {
    const MatrixOrigin& origin = layer.origins[i];
    EXPECT_EQ(origin.from_expert, 2);
    EXPECT_EQ(origin.from_part, origin.part == Part::kW1 ? Part::kW3 : Part::kW1);
    EXPECT_TRUE(origin.weight.equal());
  }
}

TEST_F(DamagedTest, AScaleThatIsTooLargeByAFactorIsSeenAsOne) {
  const fs::path original = golden_root() / "quant" / "modelopt-nvfp4-mixtral";
  const std::string name = "model.layers.0.block_sparse_moe.experts.2.w1.weight_scale_2";
  const fs::path b = damaged(original, [&](MutableCheckpoint& checkpoint) {
    auto& bytes = checkpoint.tensors.at(name).bytes;
    float value = 0;
    std::memcpy(&value, bytes.data(), 4);
    value *= 4.0F;
    std::memcpy(bytes.data(), &value, 4);
  });
  const LayerDifference layer = diff(golden_root() / "sources" / "mixtral", b, weights_only());
  ASSERT_EQ(layer.origins.size(), 1u);
  EXPECT_EQ(layer.origins[0].from_expert, 2);
  // The quantized weights' projection on the source is 1 to within the square of their error.
  EXPECT_NEAR(layer.origins[0].weight.factor(), 4.0, 4.0 * 0.02);
}

TEST_F(DamagedTest, TensorsOutsideOfExpertsAreComparedAndListed) {
  const fs::path source = golden_root() / "sources" / "qwen3_moe";
  const std::string router = "model.layers.0.mlp.gate.weight";
  const std::string norm = "model.layers.0.input_layernorm.weight";
  const std::string head = "model.embed_tokens.weight";
  const fs::path b = damaged(source, [&](MutableCheckpoint& checkpoint) {
    checkpoint.tensors.at(router).bytes[1] ^= std::byte{0x80};  // the sign of the first weight
    checkpoint.tensors.at(head).bytes[3] ^= std::byte{0x80};
    checkpoint.tensors["extra.weight"] = checkpoint.tensors.at(norm);
    checkpoint.tensors.erase(norm);
  });
  DiffSettings settings;
  settings.num_tokens = 8;
  MoeModel model_a(source, false);
  MoeModel model_b(b, false);
  const LayerDifference layer = diff_layer(model_a, model_b, 0, settings);
  ASSERT_EQ(layer.tensors.size(), 1u);
  EXPECT_EQ(layer.tensors[0].name_a, router);
  EXPECT_GT(layer.tensors[0].values.relative(), 0.0);
  ASSERT_TRUE(layer.output.has_value());
  const ModelTensorDifference rest = diff_model_tensors(model_a, model_b, settings);
  EXPECT_EQ(rest.only_in_a, std::vector<std::string>{norm});
  EXPECT_EQ(rest.only_in_b, std::vector<std::string>{"extra.weight"});
  for (const TensorDifference& tensor : rest.tensors)
    EXPECT_EQ(tensor.values.equal(), tensor.name_a != head) << tensor.name_a;
}

TEST(ModelDiffTest, NumbersThatAreNotFiniteAreTooLarge) {
  Difference difference;
  const std::vector<float> a = {1.0F, 2.0F};
  const std::vector<float> b = {1.0F, std::numeric_limits<float>::quiet_NaN()};
  difference.add(a, b);
  EXPECT_TRUE(DiffSettings().too_large(difference));
  DiffSettings by_snr;
  by_snr.max_relative = std::numeric_limits<double>::infinity();
  by_snr.min_snr_db = 10.0;
  EXPECT_TRUE(by_snr.too_large(difference));
}

TEST(ModelDiffTest, ModelsOfOtherSizesAreRefused) {
  const MoeModel a(golden_root() / "sources" / "qwen3_moe", false);
  const MoeModel b(golden_root() / "families" / "qwen3_moe", false);
  EXPECT_THROW(require_comparable(a, b), Error);
}

}  // namespace
}  // namespace gantry::test
