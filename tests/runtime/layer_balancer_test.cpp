#include "runtime/layer_balancer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/runtime/rebalance_case.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

class LayerBalancerTest : public testing::Test {
 protected:
  // Routes every token to experts 0 and 1, which one rank holds.
  MoeInput skewed_input() {
    const auto choices = static_cast<size_t>(kTokens * spec_.routing.num_slots());
    ids_.assign(choices, -1);
    weights_.assign(choices, 0.5F);
    for (size_t t = 0; t < kTokens; ++t) {
      ids_[t * static_cast<size_t>(spec_.routing.num_slots())] = 0;
      ids_[t * static_cast<size_t>(spec_.routing.num_slots()) + 1] = 1;
    }
    return {.hidden_states = x_, .topk_ids = ids_, .topk_weights = weights_};
  }

  static constexpr size_t kTokens = 24;
  RebalanceCase layer_case_{golden_root() / "families" / "qwen3_moe"};
  const MoeLayerSpec& spec_ = layer_case_.spec();
  SeededRng rng_;
  const std::vector<float> x_ = rng_.normals(kTokens * static_cast<size_t>(spec_.hidden_size));
  std::vector<int32_t> ids_;
  std::vector<float> weights_;
};

TEST_F(LayerBalancerTest, SpreadsHotExpertsAfterAnInterval) {
  const MoeInput input = skewed_input();
  const ExpertMap linear = ExpertMap::create(spec_.num_experts, 2, Placement::kLinear);
  std::vector<std::vector<int64_t>> computed(2);  // by rank, of each step
  run_local_ranks(2, [&](Communicator& world) {
    ParallelConfig own{.ep_size = 2};
    own.rank = world.rank();
    const auto layer = layer_case_.make_layer(own, linear, &world);
    LayerBalancer balancer(*layer, world,
                           {.num_redundant = 2, .window_steps = 2, .interval_steps = 3});
    Workspace workspace = layer->make_workspace(kTokens, balancer.max_slots());
    std::vector<float> out(x_.size());
    std::vector<float> first;
    for (int step = 0; step < 6; ++step) {
      layer->forward(input, workspace, out);
      if (step == 0) first = out;
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(out[i], first[i], 1e-5 * (1 + std::abs(first[i])));
      const auto slots = workspace.tokens_per_slot();
      computed[static_cast<size_t>(own.rank)].push_back(
          std::accumulate(slots.begin(), slots.end(), int64_t{0}));
      EXPECT_EQ(balancer.step(workspace), step == 2);
    }
    EXPECT_EQ(balancer.totals().rebalances, 1);
    EXPECT_EQ(balancer.totals().skipped, 1) << "the second interval finds nothing to improve";
    EXPECT_EQ(layer->experts().num_physical(), spec_.num_experts + 2);
    EXPECT_EQ(layer->experts().num_slots(0), layer->experts().num_slots(1));
  });
  const auto all = static_cast<int64_t>(2 * kTokens);
  EXPECT_EQ(computed[0], (std::vector<int64_t>{all, all, all, all / 2, all / 2, all / 2}));
  EXPECT_EQ(computed[1], (std::vector<int64_t>{0, 0, 0, all / 2, all / 2, all / 2}));
}

TEST_F(LayerBalancerTest, LeavesAnEvenLoadAlone) {
  const ExpertMap linear = ExpertMap::create(spec_.num_experts, 1, Placement::kLinear);
  const auto world = make_self_communicator();
  const auto layer = layer_case_.make_layer({}, linear, nullptr);
  LayerBalancer balancer(*layer, *world, {.window_steps = 1, .interval_steps = 1});
  Workspace workspace = layer->make_workspace(kTokens);
  std::vector<float> out(x_.size());
  layer->forward({.hidden_states = x_}, workspace, out);
  EXPECT_FALSE(balancer.step(workspace));
  EXPECT_EQ(balancer.totals().skipped, 1);
  EXPECT_EQ(layer->experts(), linear);
}

TEST_F(LayerBalancerTest, RefusesSenselessOptions) {
  const auto world = make_self_communicator();
  const auto layer = layer_case_.make_layer(
      {}, ExpertMap::create(spec_.num_experts, 1, Placement::kLinear), nullptr);
  constexpr auto code = ErrorCode::kInvalidArgument;
  expect_error([&] { LayerBalancer(*layer, *world, {.num_redundant = -1}); }, code, {"-1"});
  expect_error([&] { LayerBalancer(*layer, *world, {.interval_steps = 0}); }, code, {"0 steps"});
  expect_error([&] { LayerBalancer(*layer, *world, {.window_steps = 0}); }, code, {"window"});
}

}  // namespace
}  // namespace gantry::test
