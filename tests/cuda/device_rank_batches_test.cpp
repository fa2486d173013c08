// The contract of DeviceMoeLayer with ranks: batches of token groups that differ, also without
// tokens, in chunks; ids of an engine; numbers of tokens that do not belong together.

#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "runtime/device_moe_layer.h"
#include "runtime/reference.h"
#include "tests/cuda/golden_layer_fixture.h"
#include "tests/support/device_array.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

// Shared experts with a gate: added once a token group.
class DeviceRankBatchesTest : public GoldenLayerTest {
 protected:
  using Body = std::function<void(const DeviceMoeLayer& layer, const ParallelConfig& own,
                                  DeviceCommunicator& world, const ExpertMap& experts)>;
  void run_ranks(const ParallelConfig& config, const Body& body) {
    run_ranks(config, ExpertMap::create(spec.num_experts, config.ep_size, Placement::kRoundRobin),
              body);
  }
  void run_ranks(const ParallelConfig& config, const ExpertMap& experts, const Body& body) {
    run_local_ranks(config.world_size(), [&](Communicator& host) {
      ParallelConfig own = config;
      own.rank = host.rank();
      const auto world = make_host_staged_communicator(host, device, {});
      const DeviceMoeOptions options = exact_options();
      const DeviceMoeLayer layer(device, load(own, experts), experts, options, world.get());
      body(layer, own, *world, experts);
    });
  }

  // Of a single rank.
  std::vector<float> expected(std::span<const float> x) {
    const ExpertMap experts = ExpertMap::create(spec.num_experts, 1, Placement::kLinear);
    const DeviceMoeOptions options = exact_options();
    const DeviceMoeLayer layer(device, load({}, experts), experts, options);
    DeviceWorkspace workspace = layer.make_workspace(64);
    std::vector<float> out(x.size());
    layer.forward_host({.hidden_states = x}, workspace, out);
    return out;
  }
};

TEST_F(DeviceRankBatchesTest, TokenGroupsMayDifferAndHaveNone) {
  // Tokens of the two groups; chunks of 3.
  const std::vector<std::array<int64_t, 2>> batches = {{5, 5}, {7, 2}, {0, 4},
                                                       {4, 0}, {0, 0}, {1, 0}};
  const int64_t h = spec.hidden_size;
  const std::vector<float> x = rng.normals(static_cast<size_t>(14 * h));
  const std::vector<float> all = expected(x);
  for (const ParallelConfig& config : {ParallelConfig{.tp_size = 1, .ep_size = 2, .dp_size = 2},
                                       ParallelConfig{.tp_size = 2, .ep_size = 2, .dp_size = 2},
                                       ParallelConfig{.tp_size = 1, .ep_size = 4, .dp_size = 2}}) {
    run_ranks(config, [&](const DeviceMoeLayer& layer, const ParallelConfig& own, auto&, auto&) {
      DeviceWorkspace workspace = layer.make_workspace(3);
      for (const auto& batch : batches) {
        const auto group = static_cast<size_t>(own.dp_rank());
        const auto first = static_cast<size_t>(group * static_cast<size_t>(7 * h));
        const auto count = static_cast<size_t>(batch[group] * h);
        std::vector<float> out(count);
        layer.forward_host({.hidden_states = std::span(x).subspan(first, count)}, workspace, out);
        if (count == 0) continue;
        // Sums of at most 4 ranks' f32 parts in another order than a single rank's.
        EXPECT_LE(relative_error(out, {all.begin() + static_cast<ptrdiff_t>(first),
                                       all.begin() + static_cast<ptrdiff_t>(first + count)}),
                  1e-6)
            << describe(own) << ": " << batch[0] << ", " << batch[1] << " tokens, seed "
            << rng.seed();
      }
    });
  }
}

TEST_F(DeviceRankBatchesTest, RanksComputeThePhysicalIdsThatTheyHold) {
  const int64_t h = spec.hidden_size;
  const int64_t k = spec.routing.num_slots();
  const std::vector<float> x = rng.normals(static_cast<size_t>(6 * h));
  const std::vector<float> w = rng.normals(static_cast<size_t>(6 * k));
  std::vector<int32_t> ids(w.size());
  for (int32_t& id : ids)
    id = static_cast<int32_t>(rng.integer(-1, spec.num_experts - 1));
  run_ranks({.ep_size = 3}, [&](const DeviceMoeLayer& layer, auto&, auto&, const ExpertMap& map) {
    DeviceWorkspace workspace = layer.make_workspace(8);
    std::vector<int32_t> physical(ids);  // round-robin: numbered rank by rank
    for (int32_t& id : physical)
      if (id >= 0) id = map.replicas(id).front();
    std::vector<float> logical_out(x.size());
    std::vector<float> physical_out(x.size());
    layer.forward_host({.hidden_states = x, .topk_ids = ids, .topk_weights = w}, workspace,
                       logical_out);
    layer.forward_host(
        {.hidden_states = x, .topk_ids = physical, .topk_weights = w, .physical_ids = true},
        workspace, physical_out);
    EXPECT_EQ(logical_out, physical_out) << rng.seed();
  });
}

TEST_F(DeviceRankBatchesTest, OfSeveralCopiesOfAnExpertOneComputes) {
  std::vector<int32_t> physical_to_logical;
  for (int32_t expert = 0; expert < spec.num_experts; ++expert)
    physical_to_logical.push_back(expert);
  for (const int32_t copied : {0, 1, 0})  // P is no multiple of the ranks either
    physical_to_logical.push_back(copied);
  const ExpertMap experts =
      ExpertMap::with_redundancy(spec.num_experts, physical_to_logical, 2, Placement::kRoundRobin);
  const std::vector<float> x = rng.normals(static_cast<size_t>(9 * spec.hidden_size));
  const std::vector<float> alone = expected(x);
  run_ranks({.ep_size = 2}, experts, [&](const DeviceMoeLayer& layer, auto&, auto&, auto&) {
    DeviceWorkspace workspace = layer.make_workspace(9);
    std::vector<float> out(x.size());
    layer.forward_host({.hidden_states = x}, workspace, out);
    EXPECT_LE(relative_error(out, alone), 1e-6) << rng.seed();
  });
}

TEST_F(DeviceRankBatchesTest, RefusesNumbersOfTokensThatDoNotBelongTogether) {
  const int64_t h = spec.hidden_size;
  // Ranks 0 and 1 are one token group.
  expect_error(
      [&] {
        run_ranks({.tp_size = 2}, [&](const DeviceMoeLayer& layer, const auto& own, auto&, auto&) {
          DeviceWorkspace workspace = layer.make_workspace(4);
          std::vector<float> x(static_cast<size_t>((1 + own.rank) * h));
          std::vector<float> out(x.size());
          layer.forward_host({.hidden_states = x}, workspace, out);
        });
      },
      ErrorCode::kInvalidArgument, {"token group 0", "rank 0 has 1 tokens, rank 1 has 2"});
  const auto forward = [&](const std::vector<int64_t>& group_tokens) {
    run_ranks({.ep_size = 2, .dp_size = 2}, [&](const DeviceMoeLayer& layer, auto&, auto&, auto&) {
      DeviceWorkspace workspace = layer.make_workspace(4);
      const DeviceArray<float> x(device, static_cast<size_t>(2 * h));
      const DeviceArray<float> out(device, static_cast<size_t>(2 * h));
      layer.forward({.num_tokens = 2, .hidden_states = x.data(), .group_tokens = group_tokens},
                    workspace, out.data(), nullptr);
    });
  };
  expect_error([&] { forward({}); }, ErrorCode::kInvalidArgument, {"2 token groups, found 0"});
  expect_error(
      [&] {
        forward({3, 3});
      },
      ErrorCode::kInvalidArgument, {"group_tokens: 3", "whose batch has 2"});
}

TEST_F(DeviceRankBatchesTest, RanksNeedACommunicatorOfTheirSize) {
  const ExpertMap experts = ExpertMap::create(spec.num_experts, 2, Placement::kLinear);
  const MoeLayerWeights weights = load({.ep_size = 2}, experts);
  expect_error([&] { const DeviceMoeLayer layer(device, weights, experts, {}); },
               ErrorCode::kInvalidArgument, {"needs a device communicator"});
  const auto self = make_self_communicator();
  const auto world = make_host_staged_communicator(*self, device, {});
  expect_error([&] { const DeviceMoeLayer layer(device, weights, experts, {}, world.get()); },
               ErrorCode::kInvalidArgument, {"does not belong to rank 0 of 1"});
}

}  // namespace
}  // namespace gantry::test
