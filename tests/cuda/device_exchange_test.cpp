// How tokens move between ranks with devices: both exchanges and both orders of sums against each
// other and a single rank, bit for bit; slots; what moves.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "runtime/device_moe_layer.h"
#include "runtime/reference.h"
#include "tests/cuda/golden_layer_fixture.h"
#include "tests/support/device_array.h"
#include "tests/support/expect_error.h"
#include "tests/support/same_bits.h"

namespace gantry::test {
namespace {

constexpr ExchangeOptions kGather{.kind = ExchangeKind::kAllGatherReduceScatter};
constexpr ExchangeOptions kAllToAll{.kind = ExchangeKind::kAllToAll};

ExchangeOptions ordered(ExchangeOptions options) {
  options.combine = CombineOrder::kOrdered;
  return options;
}

ExchangeOptions with_slots(int slots) {
  ExchangeOptions options = kAllToAll;
  options.slots = slots;
  return options;
}

/// A batch of every token group; ids and weights may be empty: the router's.
struct Batches {
  std::vector<std::vector<float>> x;
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::vector<float>> weights;
};

class DeviceExchangeTest : public GoldenLayerTest {
 protected:
  ExpertMap map_for(int ep_size) const {
    return ExpertMap::create(spec.num_experts, ep_size, Placement::kRoundRobin);
  }

  Batches random_batches(const std::vector<int64_t>& tokens) {
    Batches batches;
    for (const int64_t count : tokens) {
      batches.x.push_back(rng.normals(static_cast<size_t>(count * spec.hidden_size)));
      batches.ids.emplace_back();
      batches.weights.emplace_back();
    }
    return batches;
  }

  /// With ids from `draw`, K a token.
  Batches with_ids(Batches batches, const std::function<int32_t(size_t choice)>& draw) {
    for (size_t group = 0; group < batches.x.size(); ++group) {
      const auto tokens = static_cast<int64_t>(batches.x[group].size()) / spec.hidden_size;
      const auto choices = static_cast<size_t>(tokens * spec.routing.num_slots());
      batches.weights[group] = rng.normals(choices);
      for (size_t i = 0; i < choices; ++i)
        batches.ids[group].push_back(draw(i));
    }
    return batches;
  }

  struct Result {
    std::vector<std::vector<float>> out;  // [world]
    std::vector<ExchangeBytes> moved;     // [world], by the layer so far
  };

  Result run(const ParallelConfig& config, const ExchangeOptions& exchange, const Batches& batches,
             int64_t max_tokens) {
    return run_all(config, exchange, {batches}, max_tokens).front();
  }

  /// One after the other, on the same layer.
  std::vector<Result> run_all(const ParallelConfig& config, const ExchangeOptions& exchange,
                              const std::vector<Batches>& all, int64_t max_tokens) {
    std::vector<Result> results(all.size());
    for (Result& result : results) {
      result.out.resize(static_cast<size_t>(config.world_size()));
      result.moved.resize(result.out.size());
    }
    const ExpertMap experts = map_for(config.ep_size);
    run_local_ranks(config.world_size(), [&](Communicator& host) {
      ParallelConfig own = config;
      own.rank = host.rank();
      const auto world = make_host_staged_communicator(host, device, {});
      const DeviceMoeOptions options = exact_options(exchange);
      const DeviceMoeLayer layer(device, load(own, experts), experts, options, world.get());
      DeviceWorkspace workspace = layer.make_workspace(max_tokens);
      const auto group = static_cast<size_t>(own.dp_rank());
      const auto rank = static_cast<size_t>(own.rank);
      for (size_t i = 0; i < all.size(); ++i) {
        const Batches& batches = all[i];
        std::vector<float>& out = results[i].out[rank];
        out.resize(batches.x[group].size());
        layer.forward_host({.hidden_states = batches.x[group],
                            .topk_ids = batches.ids[group],
                            .topk_weights = batches.weights[group]},
                           workspace, out);
        results[i].moved[rank] = layer.bytes_moved();
      }
    });
    return results;
  }

  /// Of a single rank, for each token group.
  std::vector<std::vector<float>> alone(const Batches& batches) {
    const ExpertMap experts = ExpertMap::create(spec.num_experts, 1, Placement::kLinear);
    const DeviceMoeOptions options = exact_options();
    const DeviceMoeLayer layer(device, load({}, experts), experts, options);
    DeviceWorkspace workspace = layer.make_workspace(64);
    std::vector<std::vector<float>> out;
    for (size_t group = 0; group < batches.x.size(); ++group) {
      layer.forward_host({.hidden_states = batches.x[group],
                          .topk_ids = batches.ids[group],
                          .topk_weights = batches.weights[group]},
                         workspace, out.emplace_back(batches.x[group].size()));
    }
    return out;
  }

  static void expect_group_bits(const ParallelConfig& config,
                                const std::vector<std::vector<float>>& of_groups,
                                const std::vector<std::vector<float>>& of_ranks) {
    for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
      ParallelConfig own = config;
      own.rank = static_cast<int>(rank);
      EXPECT_TRUE(same_bits(of_groups[static_cast<size_t>(own.dp_rank())], of_ranks[rank]))
          << describe(own);
    }
  }

  static void expect_same(const Result& expected, const Result& found) {
    for (size_t rank = 0; rank < found.out.size(); ++rank)
      EXPECT_TRUE(same_bits(expected.out[rank], found.out[rank])) << "rank " << rank;
  }
};

const ParallelConfig kDp1{.ep_size = 3};
const ParallelConfig kDp2{.ep_size = 2, .dp_size = 2};
const ParallelConfig kEp4Dp2{.ep_size = 4, .dp_size = 2};
const ParallelConfig kTpDp2{.tp_size = 2, .ep_size = 2, .dp_size = 2};

TEST_F(DeviceExchangeTest, SumsOfRanksHaveTheBitsOfAllgather) {
  for (const ParallelConfig& config : {kDp1, kDp2, kEp4Dp2, kTpDp2}) {
    SCOPED_TRACE(describe(config));
    std::vector<Batches> all;
    for (std::vector<int64_t> tokens : {std::vector<int64_t>{7, 2}, {0, 4}, {1, 0}, {0, 0}}) {
      tokens.resize(static_cast<size_t>(config.dp_size));
      all.push_back(random_batches(tokens));
    }
    const std::vector<Result> gathered = run_all(config, kGather, all, 3);
    for (const int slots : {0, 1, 64}) {
      const std::vector<Result> listed = run_all(config, with_slots(slots), all, 3);
      for (size_t i = 0; i < all.size(); ++i) {
        SCOPED_TRACE(fmt::format("batch {}, {} slots, seed {}", i, slots, rng.seed()));
        expect_same(gathered[i], listed[i]);
      }
      // Tokens without a choice on a rank are rare: of seven, some message has more than one.
      if (slots == 1 && config == kDp2) {
        EXPECT_GT(listed.front().moved[0].overflows, 0);
      }
    }
  }
}

TEST_F(DeviceExchangeTest, OrderedSumsHaveTheBitsOfASingleRank) {
  for (const ParallelConfig& config : {kDp1, kDp2, kEp4Dp2}) {
    const Batches batches =
        random_batches(config.dp_size == 1 ? std::vector<int64_t>{5} : std::vector<int64_t>{7, 2});
    const auto expected = alone(batches);
    for (const ExchangeOptions& exchange : {kGather, kAllToAll}) {
      SCOPED_TRACE(fmt::format("{}, seed {}", to_string(exchange.kind), rng.seed()));
      expect_group_bits(config, expected, run(config, ordered(exchange), batches, 3).out);
    }
  }
}

TEST_F(DeviceExchangeTest, OrderedSumsOfTensorParallelRanksMatchASingleRank) {
  const Batches batches = random_batches({5, 3});
  const auto expected = alone(batches);
  for (const ExchangeOptions& exchange : {kGather, kAllToAll}) {
    const Result result = run(kTpDp2, ordered(exchange), batches, 8);
    for (size_t rank = 0; rank < result.out.size(); ++rank)
      EXPECT_LE(relative_error(result.out[rank], expected[rank / 2]), 1e-6) << rng.seed();
  }
}

TEST_F(DeviceExchangeTest, AnyIdsAnyOwners) {
  const auto random_id = [&](size_t) {
    return static_cast<int32_t>(rng.integer(-1, spec.num_experts - 1));
  };
  const auto all_on_one = [](size_t) { return 2; };
  const auto nobody = [](size_t) { return -1; };
  const auto last = [&](size_t choice) {
    return choice % static_cast<size_t>(spec.routing.num_slots()) == 0 ? spec.num_experts - 1 : -1;
  };
  const std::vector<std::function<int32_t(size_t)>> draws = {random_id, all_on_one, nobody, last};
  std::vector<Batches> all;
  for (const auto& draw : draws)
    all.push_back(with_ids(random_batches({6, 5}), draw));
  const std::vector<Result> sorted = run_all(kEp4Dp2, ordered(kAllToAll), all, 4);
  const std::vector<Result> gathered = run_all(kEp4Dp2, kGather, all, 4);
  const std::vector<Result> listed = run_all(kEp4Dp2, kAllToAll, all, 4);
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(fmt::format("ids {}, seed {}", i, rng.seed()));
    expect_group_bits(kEp4Dp2, alone(all[i]), sorted[i].out);
    expect_same(gathered[i], listed[i]);
  }
}

// Latent projections with a bias, and identity experts: what owners add.
TEST_F(DeviceExchangeTest, OwnersAddWhatIsAddedOnce) {
  for (const char* family : {"nemotron_h-latent", "longcat_flash"}) {
    SCOPED_TRACE(family);
    open(family);
    const Batches batches = random_batches({5, 4});
    const auto expected = alone(batches);
    expect_group_bits(kDp2, expected, run(kDp2, ordered(kAllToAll), batches, 8).out);
    const Result listed = run(kDp2, kAllToAll, batches, 8);
    for (size_t rank = 0; rank < listed.out.size(); ++rank)
      EXPECT_LE(relative_error(listed.out[rank], expected[rank]), 1e-6) << rng.seed();
  }
}

// One payload a (token, rank outside the group), one row back.
TEST_F(DeviceExchangeTest, MovesWhatTheFormulaSays) {
  const int64_t h = spec.hidden_size;
  const int64_t k = spec.routing.num_slots();
  const ExpertMap experts = map_for(2);
  const Batches batches = with_ids(random_batches({9, 4}), [&](size_t) {
    return static_cast<int32_t>(rng.integer(-1, spec.num_experts - 1));
  });
  const Result result = run(kDp2, kAllToAll, batches, 16);
  std::array<int64_t, 2> away = {};  // tokens of each rank that the other computes
  for (size_t group = 0; group < 2; ++group) {
    const std::vector<int32_t>& ids = batches.ids[group];
    for (size_t token = 0; token < ids.size() / static_cast<size_t>(k); ++token) {
      const auto first = ids.begin() + static_cast<ptrdiff_t>(token) * k;
      away[group] += std::any_of(first, first + k, [&](int32_t id) {
        return id >= 0 && experts.computing_rank(id) == static_cast<int>(1 - group);
      });
    }
  }
  ASSERT_GT(away[0] + away[1], 0) << rng.seed();
  for (size_t rank = 0; rank < 2; ++rank) {
    const ExchangeBytes& moved = result.moved[rank];
    EXPECT_EQ(moved.dispatch_sent, 4 + away[rank] * 4 * (h + 2 * k));
    EXPECT_EQ(moved.dispatch_received, 4 + away[1 - rank] * 4 * (h + 2 * k));
    EXPECT_EQ(moved.combine_sent, away[1 - rank] * 4 * h);
    EXPECT_EQ(moved.combine_received, away[rank] * 4 * h);
    EXPECT_EQ(moved.overflows, 0);
  }
  // With slots the same room in every message, and no counts.
  const Result slots = run(kDp2, with_slots(3), batches, 2);
  EXPECT_EQ(slots.moved[0].overflows, 0);
  EXPECT_EQ(slots.moved[0].dispatch_sent,
            9 * 4 * (h + 2 * k));  // chunks of 2: room for 2, 2, 2, 2, 1
}

// A batch without the host: rows that did not fit are NaN and counted, the others are right.
TEST_F(DeviceExchangeTest, TokensWithoutRoomAreNoSilentNumbers) {
  const int64_t h = spec.hidden_size;
  const int64_t k = spec.routing.num_slots();
  const ExpertMap experts = map_for(2);
  // Group 0: all tokens to an expert of rank 1.
  const int32_t away = experts.slot_to_logical(1).front();
  const Batches batches = with_ids(random_batches({4, 4}), [&](size_t choice) {
    return choice % static_cast<size_t>(k) == 0 ? away : -1;
  });
  const auto expected = run(kDp2, kGather, batches, 4);
  run_local_ranks(2, [&](Communicator& host) {
    ParallelConfig own = kDp2;
    own.rank = host.rank();
    const auto rank = static_cast<size_t>(own.rank);
    const auto world = make_host_staged_communicator(host, device, {});
    const DeviceMoeOptions options = exact_options(with_slots(3));
    const DeviceMoeLayer layer(device, load(own, experts), experts, options, world.get());
    DeviceWorkspace workspace = layer.make_workspace(4);
    const DeviceArray<float> x(device, batches.x[rank]);
    const DeviceArray<int32_t> ids(device, batches.ids[rank]);
    const DeviceArray<float> weights(device, batches.weights[rank]);
    const DeviceArray<float> out(device, batches.x[rank].size());
    const std::array<int64_t, 2> group_tokens = {4, 4};
    layer.forward({.num_tokens = 4,
                   .hidden_states = x.data(),
                   .topk_ids = ids.data(),
                   .topk_weights = weights.data(),
                   .group_tokens = group_tokens},
                  workspace, out.data(), nullptr);
    const std::vector<float> found = out.read();
    EXPECT_EQ(layer.lost_tokens(workspace, nullptr), own.rank == 0 ? 1 : 0);
    const auto fit = static_cast<size_t>((own.rank == 0 ? 3 : 4) * h);
    EXPECT_TRUE(std::equal(found.begin(), found.begin() + static_cast<ptrdiff_t>(fit),
                           expected.out[rank].begin()));
    EXPECT_TRUE(std::all_of(found.begin() + static_cast<ptrdiff_t>(fit), found.end(),
                            [](float value) { return std::isnan(value); }));
  });
}

TEST_F(DeviceExchangeTest, RefusesWhatDoesNotGoTogether) {
  struct Refusal {
    ExchangeOptions exchange;
    SumOrder order;
    const char* why;
  };
  ExchangeOptions slots_of_gather = kGather;
  slots_of_gather.slots = 4;
  const std::vector<Refusal> refusals = {
      {slots_of_gather, SumOrder::kRank, "slots belong to messages of all_to_all"},
      {ordered(with_slots(4)), SumOrder::kRank, "one row a choice"},
      {kAllToAll, SumOrder::kNative, "needs one of every rank"},
      {ordered(kGather), SumOrder::kNative, "ascending expert id"},
  };
  const ExpertMap experts = map_for(2);
  for (const Refusal& refusal : refusals) {
    expect_error(
        [&] {
          run_local_ranks(2, [&](Communicator& host) {
            const auto world = make_host_staged_communicator(host, device, {});
            ParallelConfig own{.ep_size = 2};
            own.rank = host.rank();
            DeviceMoeOptions options;
            options.exchange = refusal.exchange;
            options.reduce = refusal.order;
            const DeviceMoeLayer layer(device, load(own, experts), experts, options, world.get());
          });
        },
        ErrorCode::kUnsupported, {"layer", refusal.why});
  }
}

}  // namespace
}  // namespace gantry::test
