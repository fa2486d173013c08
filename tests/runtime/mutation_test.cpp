#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "runtime/moe_model.h"
#include "tests/support/detection.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/mutations.h"
#include "tests/support/temp_dir.h"

// Damages checkpoints of every family in every way of tests/support/mutations.cpp and asks the
// product whether it notices. The reference for numbers is what the intact checkpoint computes
// (which golden_test.cpp holds against Transformers) for tokens enough to visit every expert.

namespace gantry::test {
namespace {

const std::vector<ParallelConfig>& layouts() {
  static const std::vector<ParallelConfig> list = {
      {}, {.tp_size = 2}, {.ep_size = 3}, {.tp_size = 3, .ep_size = 2}};
  return list;
}

// A third of the tokens are large and a third are huge: their logits outweigh a strong correction
// bias, so that experts which it disfavours are visited too.
std::vector<float> random_tokens(int64_t count, int64_t hidden_size, SeededRng& rng) {
  std::vector<float> tokens = rng.normals(static_cast<size_t>(count * hidden_size));
  for (size_t i = tokens.size() / 3; i < tokens.size(); ++i)
    tokens[i] *= 6.0F;
  for (size_t i = tokens.size() * 2 / 3; i < tokens.size(); ++i)
    tokens[i] *= 7.0F;
  return tokens;
}

// What an intact model computes, and which experts no token visits: a correction bias can be so low
// that an expert is dead, and then no damage to it changes a number.
struct Baseline {
  Reference reference;
  std::map<int, std::set<int>> dead_experts;  // by layer

  [[nodiscard]] bool is_without_effect(const Mutated& mutated) const {
    if (mutated.experts.empty()) return false;
    const auto layer = dead_experts.find(mutated.layer);
    return layer != dead_experts.end() &&
           std::all_of(mutated.experts.begin(), mutated.experts.end(),
                       [&](int expert) { return layer->second.contains(expert); });
  }
};

// Inputs and outputs of every layer of the intact model.
Baseline baseline_of(const std::filesystem::path& directory, SeededRng& rng) {
  constexpr int64_t kTokens = 384;
  MoeModel model(directory, /*names_only=*/false);
  Baseline baseline;
  Reference& reference = baseline.reference;
  const auto vocabulary = [&] {
    for (const MoeLayerSpec& layer : model.config().layers) {
      if (layer.hash_table) return layer.vocab_size;
    }
    return int64_t{0};
  }();
  for (int64_t t = 0; vocabulary > 0 && t < kTokens; ++t) {
    reference.token_ids.push_back(static_cast<int32_t>(t % vocabulary));
  }
  for (const MoeLayerSpec& layer : model.config().layers) {
    ReferenceBlock block;
    block.name = "layer " + std::to_string(layer.layer);
    block.input = random_tokens(kTokens, layer.hidden_size, rng);
    const LayerBatch batch{block.input, reference.token_ids, {}};
    FusedMoeOptions options;
    options.activations = ActivationDType::kF32;
    LoadOptions load;
    load.threads.count = 1;
    options.threads.count = 1;
    auto results =
        run_layer_on_ranks(model, layer.layer, {}, Placement::kLinear, load, options, &batch);
    const auto& counts = results[0].tokens_per_expert;
    for (int expert = 0; expert < layer.num_experts; ++expert) {
      if (counts[static_cast<size_t>(expert)] > 0) continue;
      EXPECT_TRUE(layer.correction_bias) << "expert " << expert << " is not visited";
      baseline.dead_experts[layer.layer].insert(expert);
    }
    block.output = std::move(results[0].out);
    reference.blocks.emplace(layer.layer, std::move(block));
  }
  return baseline;
}

class MutationTest : public testing::TestWithParam<Golden> {};

TEST_P(MutationTest, EveryDamageThatChangesANumberIsNoticed) {
  SeededRng rng;
  const TempDir temp;
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  const MoeModel model(GetParam().directory, /*names_only=*/false);
  const Baseline baseline = baseline_of(GetParam().directory, rng);
  const Reference& reference = baseline.reference;
  ASSERT_EQ(stage_of_detection(GetParam().directory, reference, {}), "")
      << "a false alarm on the intact checkpoint";

  std::map<std::string, int> stages;
  int tried = 0;
  int without_effect = 0;
  for (int trial = 0; trial < trials(); ++trial) {
    for (const Mutation& mutation : mutations()) {
      MutableCheckpoint damaged = intact;
      const Mutated mutated = mutation.apply(damaged, model, rng);
      if (!mutated.applied) continue;
      const std::filesystem::path directory = temp / "damaged";
      damaged.write(directory);
      const ParallelConfig& parallel = layouts()[static_cast<size_t>(tried) % layouts().size()];
      const std::string stage = stage_of_detection(directory, reference, parallel);
      ++tried;
      if (stage.empty() && baseline.is_without_effect(mutated)) {
        ++without_effect;
        continue;
      }
      EXPECT_NE(stage, "") << mutation.name << ": " << mutated.what << " (seed " << rng.seed()
                           << ", " << describe(parallel) << ")";
      ++stages[stage];
    }
  }
  std::string text;
  for (const auto& [stage, count] : stages) {
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " by " + stage;
  }
  std::printf("%s: %d mutations tried, %d noticed (%s), %d without effect (dead experts)\n",
              GetParam().name.c_str(), tried, tried - without_effect - stages[""], text.c_str(),
              without_effect);
}

TEST_P(MutationTest, EveryTruncationIsNoticed) {
  SeededRng rng;
  const TempDir temp;
  const std::filesystem::path directory = temp / "cut";
  MutableCheckpoint::read(GetParam().directory).write(directory);
  const std::filesystem::path file = directory / "model.safetensors";
  const auto size = static_cast<int64_t>(std::filesystem::file_size(file));
  const std::string bytes = read_bytes(file);
  for (int i = 0; i < 8 * trials(); ++i) {
    const int64_t length = rng.integer(0, size - 1);
    std::ofstream(file, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(length));
    EXPECT_NE(stage_of_detection(directory, {}, {}), "") << "cut at " << length << " of " << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, MutationTest, testing::ValuesIn(family_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
