// A layer whose experts move between ranks: what forward calls see of that.

#include "runtime/rebalance.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/runtime/rebalance_case.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

// Forward calls go on between staging and commit, and see the old slots until then.
TEST_F(RebalanceTest, CallsRunOnTheOldSlotsUntilAllRanksCommit) {
  const ExpertMap from = ExpertMap::create(num_experts_, 4, Placement::kLinear);
  const ExpertMap to = ExpertMap::create(num_experts_, 4, Placement::kRoundRobin);
  run_local_ranks(4, [&](Communicator& world) {
    const auto layer = layer_case_.make_layer(of_rank(four_, world), from, &world);
    const std::vector<float> before = forward(*layer, x_);
    {
      StagedRebalance staged(*layer, to, world);
      EXPECT_EQ(forward(*layer, x_), before);
      EXPECT_EQ(layer->experts(), from);
    }
    EXPECT_EQ(layer->experts(), from) << "dropped without commit";
    StagedRebalance staged(*layer, to, world);
    const auto held = layer->weights();
    staged.commit();
    EXPECT_EQ(layer->experts(), to);
    EXPECT_EQ(held->num_slots, from.num_slots(world.rank())) << "old slots live while held";
    EXPECT_LE(relative_difference(forward(*layer, x_), before), 1e-6);
  });
}

// Moving on one group of ranks while another group of the same ranks computes.
TEST_F(RebalanceTest, MovesInTheBackgroundOfForwardCalls) {
  const ExpertMap from = ExpertMap::create(num_experts_, 2, Placement::kLinear);
  const ExpertMap to = ExpertMap::create(num_experts_, 2, Placement::kRoundRobin);
  const ParallelConfig two{.ep_size = 2};
  std::vector<std::unique_ptr<FusedMoeLayer>> layers(2);
  std::vector<std::unique_ptr<StagedRebalance>> staged(2);
  run_local_ranks(2, [&](Communicator& world) {
    const auto rank = static_cast<size_t>(world.rank());
    layers[rank] = layer_case_.make_layer(of_rank(two, world), from, &world);
    const std::vector<float> before = forward(*layers[rank], x_);
    world.barrier();
    std::jthread mover;
    if (rank == 0) {
      mover = std::jthread([&] {
        run_local_ranks(2, [&](Communicator& other) {
          const auto own = static_cast<size_t>(other.rank());
          staged[own] = std::make_unique<StagedRebalance>(*layers[own], to, other);
        });
      });
    }
    for (int i = 0; i < 20; ++i)
      EXPECT_EQ(forward(*layers[rank], x_), before);
    if (rank == 0) mover.join();
    world.barrier();
    staged[rank]->commit();
    EXPECT_EQ(layers[rank]->experts(), to);
    EXPECT_LE(relative_difference(forward(*layers[rank], x_), before), 1e-6);
  });
}

TEST_F(RebalanceTest, AMapOfTheSameExpertsPerRankMovesNothing) {
  const ExpertMap map = ExpertMap::create(num_experts_, 4, Placement::kLinear);
  run_local_ranks(4, [&](Communicator& world) {
    const auto layer = layer_case_.make_layer(of_rank(four_, world), map, &world);
    const RebalanceStats stats = rebalance(*layer, map, world);
    EXPECT_EQ(stats.bytes_sent + stats.bytes_received, 0);
    EXPECT_EQ(stats.rounds, 0);
    EXPECT_EQ(stats.slots_kept, map.num_slots(world.rank()));
  });
}

TEST_F(RebalanceTest, ASingleRankMayTakeAndDropCopies) {
  const ExpertMap plain = ExpertMap::create(num_experts_, 1, Placement::kLinear);
  std::vector<int32_t> doubled;
  for (int p = 0; p < 2 * num_experts_; ++p)
    doubled.push_back(p % num_experts_);
  const ExpertMap copies = ExpertMap::with_redundancy(num_experts_, doubled, 1, Placement::kLinear);
  const auto world = make_self_communicator();
  const auto layer = layer_case_.make_layer({}, plain, nullptr);
  const std::vector<float> before = forward(*layer, x_);
  rebalance(*layer, copies, *world);
  EXPECT_EQ(layer->weights()->num_slots, 2 * num_experts_);
  // One rank adds in order of the experts, whichever copy computed.
  EXPECT_EQ(forward(*layer, x_), before);
  rebalance(*layer, plain, *world);
  EXPECT_EQ(forward(*layer, x_), before);
}

TEST_F(RebalanceTest, AWorkspaceWithTooFewSlotsIsRefused) {
  const ExpertMap plain = ExpertMap::create(num_experts_, 1, Placement::kLinear);
  std::vector<int32_t> more;
  for (int p = 0; p < num_experts_ + 1; ++p)
    more.push_back(p % num_experts_);
  const auto world = make_self_communicator();
  const auto layer = layer_case_.make_layer({}, plain, nullptr);
  Workspace small = layer->make_workspace(16);
  Workspace roomy = layer->make_workspace(16, num_experts_ + 1);
  rebalance(*layer, ExpertMap::with_redundancy(num_experts_, more, 1, Placement::kLinear), *world);
  std::vector<float> out(x_.size());
  layer->forward({.hidden_states = x_}, roomy, out);
  expect_error([&] { layer->forward({.hidden_states = x_}, small, out); },
               ErrorCode::kInvalidArgument, {"make a new one after a rebalance"});
}

}  // namespace
}  // namespace gantry::test
