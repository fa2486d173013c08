// Expert slots that move between four ranks, which are threads or (tests/mp) processes: every
// format against fresh loads, and layers that compute in between.

#include <gtest/gtest.h>

#include <sstream>

#include "runtime/rebalance.h"
#include "tests/parallel/rank_groups.h"
#include "tests/runtime/rebalance_case.h"
#include "tests/support/mutations.h"

namespace gantry::test {
namespace {

// bf16 checkpoints and every quantized one.
std::vector<Golden> goldens() {
  std::vector<Golden> all;
  for (const Golden& golden : family_goldens()) {
    if (golden.name == "qwen3_moe" || golden.name == "gpt_oss" || golden.name == "deepseek_v3")
      all.push_back(golden);
  }
  for (const auto& more : {quant_goldens(), gguf_goldens()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

// Moves that a GANTRY_TRIALS of 1 makes of each format.
constexpr int kMoves = 6;
// Of so many moves one is compared with a fresh load of each rank, the others with the slots of one
// load of all experts.
constexpr int kFreshLoadEvery = 40;

class RebalanceFormatTest : public testing::TestWithParam<Golden> {
 protected:
  // A chain of random maps; each rank's slots after each move.
  void run(const ParallelConfig& parallel, int moves) {
    RebalanceCase layer_case(GetParam().directory);
    const int num_experts = layer_case.spec().num_experts;
    SeededRng rng;
    std::vector<ExpertMap> maps;
    for (int i = 0; i <= moves; ++i)
      maps.push_back(random_map(num_experts, parallel.ep_size, rng));
    run_ranks(parallel.world_size(), [&](Communicator& world) {
      ParallelConfig own = parallel;
      own.rank = world.rank();
      const MoeLayerWeights all =
          layer_case.load({.tp_size = own.tp_size, .rank = own.tp_rank()},
                          ExpertMap::create(num_experts, 1, Placement::kLinear));
      const auto layer = layer_case.make_layer(own, maps[0], &world);
      for (int i = 1; i <= moves; ++i) {
        const ExpertMap& map = maps[static_cast<size_t>(i)];
        const RebalanceStats stats = rebalance(*layer, map, world);
        const auto found = layer->weights();
        const auto where = [&] {
          return fmt_like("seed ", rng.seed(), " move ", i, " rank ", own.rank);
        };
        const auto slots = map.slot_to_logical(own.ep_rank());
        ASSERT_EQ(found->num_slots, static_cast<int64_t>(slots.size())) << where();
        EXPECT_EQ(stats.slots_kept + stats.slots_copied + stats.slots_received, found->num_slots);
        const int64_t stride = all.layout.stride_bytes;
        for (size_t slot = 0; slot < slots.size(); ++slot) {
          ASSERT_EQ(
              std::memcmp(found->slots.data() + static_cast<int64_t>(slot) * stride,
                          all.slots.data() + slots[slot] * stride, static_cast<size_t>(stride)),
              0)
              << where() << " slot " << slot;
        }
        if (i % kFreshLoadEvery != 1) continue;
        EXPECT_EQ(differing_slot(*found, layer_case.load(own, map)), "") << where();
      }
    });
  }

  template <typename... Args>
  static std::string fmt_like(const Args&... args) {
    std::ostringstream text;
    (text << ... << args);
    return text.str();
  }
};

TEST_P(RebalanceFormatTest, SlotsOfFourRanksEqualAFreshLoad) {
  run({.ep_size = 4}, kMoves * trials());
}

TEST_P(RebalanceFormatTest, TensorParallelShardsMoveBesideEachOther) {
  run({.tp_size = 2, .ep_size = 2}, 2);
}

INSTANTIATE_TEST_SUITE_P(Formats, RebalanceFormatTest, testing::ValuesIn(goldens()),
                         [](const auto& golden) { return golden.param.name; });

class RebalanceRanksTest : public RebalanceTest {};

// A layer that was rebalanced computes the bits of one that was loaded so. Against the old map only
// the order of the ranks' partial sums changes: each of the K <= 8 terms of a sum is rounded once
// more or less, 8 * 2^-24 < 1e-6 of the terms.
TEST_F(RebalanceRanksTest, ForwardGivesTheBitsOfAFreshLayerAndTheNumbersOfTheOldOne) {
  std::vector<ExpertMap> maps;
  for (int i = 0; i < 4; ++i)
    maps.push_back(random_map(num_experts_, 4, rng_));
  maps.push_back(maps[0]);
  run_ranks(4, [&](Communicator& world) {
    const ParallelConfig own = of_rank(four_, world);
    const auto layer = layer_case_.make_layer(own, maps[0], &world);
    const std::vector<float> before = forward(*layer, x_);
    for (size_t i = 1; i < maps.size(); ++i) {
      rebalance(*layer, maps[i], world);
      EXPECT_EQ(layer->experts(), maps[i]);
      const std::vector<float> after = forward(*layer, x_);
      const auto fresh = layer_case_.make_layer(own, maps[i], &world);
      EXPECT_EQ(after, forward(*fresh, x_)) << "map " << i;
      EXPECT_LE(relative_difference(after, before), 1e-6) << "map " << i;
    }
    EXPECT_EQ(forward(*layer, x_), before) << "back to the first map";
  });
}

// Two ranks do all the work, then four, then the other two.
TEST_F(RebalanceRanksTest, ScalesUpAndDown) {
  const ExpertMap two = ExpertMap::create(num_experts_, 2, Placement::kLinear).with_ep_size(4);
  const ExpertMap four = ExpertMap::create(num_experts_, 4, Placement::kRoundRobin);
  std::vector<std::vector<int32_t>> slots(4);
  for (int e = 0; e < num_experts_; ++e)
    slots[static_cast<size_t>(2 + e % 2)].push_back(e);
  const ExpertMap others = ExpertMap::from_slots(num_experts_, slots);
  run_ranks(4, [&](Communicator& world) {
    const ParallelConfig own = of_rank(four_, world);
    const auto layer = layer_case_.make_layer(own, two, &world);
    const std::vector<float> before = forward(*layer, x_);
    for (const ExpertMap& map : {four, others, two}) {
      const RebalanceStats stats = rebalance(*layer, map, world);
      EXPECT_EQ(layer->weights()->num_slots, map.num_slots(world.rank()));
      EXPECT_EQ(stats.bytes_received, stats.slots_received * layer->weights()->layout.stride_bytes);
      EXPECT_LE(relative_difference(forward(*layer, x_), before), 1e-6);
    }
    EXPECT_EQ(forward(*layer, x_), before);
  });
}

}  // namespace
}  // namespace gantry::test
