// Layers with redundant experts, against the outputs of the goldens.

#include <gtest/gtest.h>

#include "tests/runtime/rebalance_case.h"
#include "tests/support/detection.h"

namespace gantry::test {
namespace {

// Every expert once, then `redundant` more copies, the last expert's first.
ExpertPlacement with_copies(const MoeModel& model, int redundant) {
  std::map<int, LayerAssignment> layers;
  for (const MoeLayerSpec& spec : model.config().layers) {
    LayerAssignment& assignment = layers[spec.layer];
    for (int p = 0; p < spec.num_experts + redundant; ++p) {
      assignment.ids.push_back(
          p < spec.num_experts ? p
                               : spec.num_experts - 1 - (p - spec.num_experts) % spec.num_experts);
    }
  }
  return {std::move(layers), "copies"};
}

class ReplicasGoldenTest : public testing::TestWithParam<Golden> {
 protected:
  void expect_match(const ParallelConfig& parallel, int redundant) {
    const MoeModel model(GetParam().directory, /*names_only=*/false);
    const Reference reference =
        read_reference(GetParam().directory / "moe_io.safetensors", model.config());
    VerifySettings settings;
    settings.parallel = parallel;
    settings.placement = with_copies(model, redundant);
    settings.load.threads.count = 1;
    EXPECT_EQ(problem_of(GetParam().directory, reference, settings), "");
  }
};

// 3 ranks, of which the first ones hold one more where copies do not divide.
TEST_P(ReplicasGoldenTest, MatchOnThreeRanks) { expect_match({.ep_size = 3}, 3); }

TEST_P(ReplicasGoldenTest, MatchOnShardsAndTokenGroups) {
  expect_match({.tp_size = 2, .ep_size = 2, .dp_size = 2}, 5);
}

std::vector<Golden> goldens() {
  std::vector<Golden> all;
  for (const Golden& golden : family_goldens()) {
    for (const char* name : {"qwen3_moe", "deepseek_v3", "gpt_oss", "longcat_flash", "llama4"}) {
      if (golden.name == name) all.push_back(golden);
    }
  }
  const auto quant = quant_goldens();
  all.insert(all.end(), quant.begin(), quant.end());
  return all;
}

INSTANTIATE_TEST_SUITE_P(Goldens, ReplicasGoldenTest, testing::ValuesIn(goldens()),
                         [](const auto& golden) { return golden.param.name; });

class ReplicasTest : public testing::Test {
 protected:
  RebalanceCase layer_case_{golden_root() / "families" / "qwen3_moe"};
  const MoeLayerSpec& spec_ = layer_case_.spec();
  SeededRng rng_;
};

// Two ranks, each with a copy of every expert: both must work, and add up to the same.
TEST_F(ReplicasTest, TokensAreSpreadOverRanksAndCountedOnce) {
  std::vector<std::vector<int32_t>> slots(2);
  for (int32_t e = 0; e < spec_.num_experts; ++e) {
    slots[0].push_back(e);
    slots[1].push_back(e);
  }
  const ExpertMap map = ExpertMap::from_slots(spec_.num_experts, slots);
  constexpr int kTokens = 64;
  const std::vector<float> x = rng_.normals(static_cast<size_t>(kTokens * spec_.hidden_size));
  std::vector<int64_t> on_rank(2, 0);
  std::vector<int64_t> per_expert(static_cast<size_t>(spec_.num_experts), 0);
  run_local_ranks(2, [&](Communicator& world) {
    ParallelConfig own{.ep_size = 2};
    own.rank = world.rank();
    const auto layer = layer_case_.make_layer(own, map, &world);
    Workspace workspace = layer->make_workspace(kTokens);
    std::vector<float> out(x.size());
    layer->forward({.hidden_states = x}, workspace, out);
    const auto slot_tokens = workspace.tokens_per_slot();
    for (const int64_t tokens : slot_tokens)
      on_rank[static_cast<size_t>(own.rank)] += tokens;
    world.barrier();
    if (own.rank == 0) return;
    const auto& logical = workspace.tokens_per_expert();
    EXPECT_EQ(std::vector<int64_t>(logical.begin(), logical.end()),
              std::vector<int64_t>(slot_tokens.begin(), slot_tokens.end()));
  });
  // Even tokens go to the first copies, odd ones to the second.
  EXPECT_EQ(on_rank[0], kTokens / 2 * spec_.routing.top_k);
  EXPECT_EQ(on_rank[1], kTokens / 2 * spec_.routing.top_k);
}

TEST_F(ReplicasTest, OnlyTheFirstCopyComputesIfAskedTo) {
  const ExpertMap map =
      ExpertMap::from_slots(spec_.num_experts, {[&] {
                                                  std::vector<int32_t> all;
                                                  for (int32_t e = 0; e < spec_.num_experts; ++e)
                                                    all.push_back(e);
                                                  return all;
                                                }(),
                                                {0, 1}});
  const std::vector<float> x = rng_.normals(static_cast<size_t>(16 * spec_.hidden_size));
  run_local_ranks(2, [&](Communicator& world) {
    ParallelConfig own{.ep_size = 2};
    own.rank = world.rank();
    FusedMoeOptions options;
    options.spread_replicas = false;
    const FusedMoeLayer layer(layer_case_.load(own, map), map, options, &world);
    Workspace workspace = layer.make_workspace(16);
    std::vector<float> out(x.size());
    layer.forward({.hidden_states = x}, workspace, out);
    int64_t computed = 0;
    for (const int64_t tokens : workspace.tokens_per_slot())
      computed += tokens;
    EXPECT_EQ(computed, own.rank == 0 ? 16 * spec_.routing.top_k : 0);
  });
}

}  // namespace
}  // namespace gantry::test
