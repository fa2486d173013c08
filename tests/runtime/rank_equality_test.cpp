// With --combine ordered and batch-invariant kernels the bits of a token's result are those of a
// single rank, whatever the ranks, the groups, the placement, the copies of experts, the exchange,
// its slots and the chunks. Random worlds, printed seeds.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#include "kernels/base/log.h"
#include "runtime/fused_moe_layer.h"
#include "tests/support/allocation_count.h"
#include "tests/support/expect_error.h"
#include "tests/support/same_bits.h"
#include "tests/support/toy_layer.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

int trials(int usual) {
  const char* text = std::getenv("GANTRY_TRIALS");
  return text == nullptr ? usual : std::max(usual, std::atoi(text));
}

// A layer, its tokens, and the world that they are spread over.
struct World {
  ToyLayer toy;
  uint64_t seed = 1;
  ParallelConfig config;
  ExpertMap experts;
  FusedMoeOptions options;
  RowFormat format;             ///< of the activations
  std::vector<int64_t> tokens;  ///< of each holder: a token group, or a sequence parallel rank
  int64_t max_num_tokens = 1;
  Floats hidden_states;
  std::vector<int32_t> topk_ids;  ///< empty: routed by the layer
  Floats topk_weights;
  std::vector<int32_t> physical_ids;  ///< of topk_ids, some copy each; empty: none are given

  [[nodiscard]] int64_t all() const {
    return std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  }
  [[nodiscard]] size_t holder(const ParallelConfig& rank) const {
    return static_cast<size_t>(rank.sequence_parallel ? rank.rank : rank.dp_rank());
  }
  /// @param physical with physical ids, where the world has them
  [[nodiscard]] MoeInput input(int64_t first, int64_t count, bool physical = false) const {
    const auto part = [&](const auto& values, int64_t width) {
      return values.empty() ? std::span(values)
                            : std::span(values).subspan(static_cast<size_t>(first * width),
                                                        static_cast<size_t>(count * width));
    };
    MoeInput input;
    input.hidden_states = part(hidden_states, toy.hidden_size);
    input.physical_ids = physical && !physical_ids.empty();
    input.topk_ids = part(input.physical_ids ? physical_ids : topk_ids, toy.top_k);
    input.topk_weights = part(topk_weights, toy.top_k);
    return input;
  }
  /// Of a holder's tokens among those of all.
  [[nodiscard]] int64_t first_token(size_t holder) const {
    return std::accumulate(tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(holder),
                           int64_t{0});
  }
  [[nodiscard]] MoeLayerWeights whole() const {
    SeededRng rng(seed);
    MoeLayerWeights weights = toy.weights(rng);
    weights.activations.format = format;
    return weights;
  }

  [[nodiscard]] std::string describe() const {
    return fmt::format("{}{}, exchange {}, {} slots, experts {}, max {}, tokens {}",
                       gantry::describe(config), config.sequence_parallel ? " sp" : "",
                       to_string(options.exchange.kind), options.exchange.slots, experts.describe(),
                       max_num_tokens, fmt::join(tokens, " "));
  }
};

// What a loader would give rank `config` of the whole layer (tp_size 1).
MoeLayerWeights part_of(MoeLayerWeights whole, const ParallelConfig& config,
                        const ExpertMap& experts) {
  const auto logical = experts.slot_to_logical(config.ep_rank());
  const auto stride = static_cast<size_t>(whole.layout.stride_bytes);
  ByteBuffer slots(logical.size() * stride);
  for (size_t slot = 0; slot < logical.size(); ++slot) {
    std::memcpy(slots.data() + slot * stride,
                whole.slots.data() + static_cast<size_t>(logical[slot]) * stride, stride);
  }
  whole.slots = std::move(slots);
  whole.num_slots = static_cast<int64_t>(logical.size());
  whole.parallel = config;
  if (!config.leads_dp_group()) whole.shared = ByteBuffer();
  return whole;
}

FusedMoeLayer layer_of(const World& world, const ParallelConfig& config,
                       Communicator& communicator) {
  return FusedMoeLayer(part_of(world.whole(), config, world.experts), world.experts, world.options,
                       &communicator);
}

Floats on_one_rank(const World& world) {
  FusedMoeOptions options = world.options;
  options.exchange = {};
  const FusedMoeLayer layer(world.whole(), world.toy.expert_map(), options, nullptr);
  Workspace workspace = layer.make_workspace(std::max<int64_t>(1, world.all()));
  Floats out(world.hidden_states.size());
  layer.forward(world.input(0, world.all()), workspace, out);
  return out;
}

Floats on_all_ranks(const World& world) {
  Floats all(world.hidden_states.size(), -99.0F);
  run_local_ranks(world.config.world_size(), [&](Communicator& communicator) {
    ParallelConfig config = world.config;
    config.rank = communicator.rank();
    const FusedMoeLayer layer = layer_of(world, config, communicator);
    Workspace workspace = layer.make_workspace(world.max_num_tokens);
    const size_t holder = world.holder(config);
    const int64_t first = world.first_token(holder);
    Floats out(static_cast<size_t>(world.tokens[holder] * world.toy.hidden_size));
    const MoeInput input = world.input(first, world.tokens[holder], /*physical=*/true);
    layer.forward(input, workspace, out);
    layer.forward(input, workspace, out);  // used buffers
    // One rank of each group writes the result down; the others must have the same.
    const bool writes = config.sequence_parallel || config.rank == config.first_of_token_group();
    float* const at = all.data() + first * world.toy.hidden_size;
    if (writes) std::copy(out.begin(), out.end(), at);
    communicator.barrier();
    EXPECT_TRUE(std::equal(out.begin(), out.end(), at)) << "rank " << config.rank;
  });
  return all;
}

class RankEqualityTest : public testing::Test {
 protected:
  RankEqualityTest() { set_log_level(LogLevel::kWarn); }  // slots overflow on purpose

  World random_world() {
    World world;
    world.toy = {.num_experts = static_cast<int>(rng.integer(1, 9)),
                 .top_k = 1,
                 .hidden_size = rng.integer(1, 70),
                 .intermediate_size = rng.integer(1, 40),
                 .shared_intermediate_size = rng.integer(0, 1) * rng.integer(1, 20),
                 .dtype = rng.integer(0, 1) == 0 ? DType::kF32 : DType::kBF16};
    world.toy.top_k = static_cast<int>(rng.integer(1, std::min(4, world.toy.num_experts)));
    world.seed = static_cast<uint64_t>(rng.integer(1, 1 << 20));
    const int dp = static_cast<int>(rng.integer(1, 4));
    world.config.dp_size = dp;
    world.config.ep_size = dp * static_cast<int>(rng.integer(1, dp == 1 ? 4 : dp == 2 ? 2 : 1));
    world.config.sequence_parallel = rng.integer(0, 3) == 0;
    // Every expert once, and up to three of them again.
    std::vector<int32_t> physical(static_cast<size_t>(world.toy.num_experts));
    std::iota(physical.begin(), physical.end(), 0);
    for (int64_t copies = rng.integer(0, 3); copies > 0; --copies)
      physical.push_back(static_cast<int32_t>(rng.integer(0, world.toy.num_experts - 1)));
    std::shuffle(physical.begin(), physical.end(), rng.engine());
    world.experts = ExpertMap::with_redundancy(
        world.toy.num_experts, physical, world.config.ep_size,
        rng.integer(0, 1) == 0 ? Placement::kLinear : Placement::kRoundRobin);
    world.options.exchange = {.kind = rng.integer(0, 1) == 0
                                          ? ExchangeKind::kAllToAll
                                          : ExchangeKind::kAllGatherReduceScatter,
                              .combine = CombineOrder::kOrdered,
                              .slots = static_cast<int>(rng.integer(0, 6))};
    world.options.batch_invariant = true;
    world.options.threads.count = 1;
    switch (rng.integer(0, 2)) {
      case 0:
        world.options.activations = ActivationDType::kF32;
        break;
      case 1:
        world.options.activations = ActivationDType::kBF16;
        break;
      default:
        world.options.activations = ActivationDType::kScheme;
        world.format = {RowQuantization::kInt8Token, 0};
    }
    const int holders =
        world.config.sequence_parallel ? world.config.world_size() : world.config.dp_size;
    for (int i = 0; i < holders; ++i)
      world.tokens.push_back(rng.integer(0, 3) == 0 ? 0 : rng.integer(1, 24));
    world.max_num_tokens = rng.integer(1, 30);
    world.hidden_states = rng.normals(static_cast<size_t>(world.all() * world.toy.hidden_size));
    if (rng.integer(0, 2) == 0) return world;
    const bool to_one = rng.integer(0, 2) == 0;  // all tokens to one expert
    for (int64_t i = 0; i < world.all() * world.toy.top_k; ++i) {
      world.topk_ids.push_back(
          static_cast<int32_t>(to_one ? 0 : rng.integer(-1, world.toy.num_experts - 1)));
      world.topk_weights.push_back(rng.uniform(0.0F, 1.0F));
    }
    if (rng.integer(0, 1) == 0) return world;
    for (const int32_t id : world.topk_ids) {
      if (id < 0) {
        world.physical_ids.push_back(-1);
        continue;
      }
      const auto copies = world.experts.replicas(id);
      world.physical_ids.push_back(
          copies[static_cast<size_t>(rng.integer(0, static_cast<int64_t>(copies.size()) - 1))]);
    }
    return world;
  }

  SeededRng rng;
};

TEST_F(RankEqualityTest, OrderedSumsHaveTheBitsOfASingleRank) {
  for (int trial = 0; trial < trials(120); ++trial) {
    const World world = random_world();
    const Floats expected = on_one_rank(world);
    const Floats found = on_all_ranks(world);
    ASSERT_TRUE(same_bits(found, expected))
        << "trial " << trial << " of seed " << rng.seed() << ": " << world.describe();
  }
}

// Sums of ranks differ from the single rank's by rounding only: for each of the K terms and R ranks
// at most 2^-24 of the largest partial sum. Both exchanges add the same things in the same order.
TEST_F(RankEqualityTest, SumsInRankOrderAreNearAndTheSameWithEitherExchange) {
  for (int trial = 0; trial < trials(60); ++trial) {
    World world = random_world();
    world.options.exchange.combine = CombineOrder::kRank;
    const Floats expected = on_one_rank(world);
    world.options.exchange.kind = ExchangeKind::kAllToAll;
    const Floats scattered = on_all_ranks(world);
    world.options.exchange.kind = ExchangeKind::kAllGatherReduceScatter;
    const Floats gathered = on_all_ranks(world);
    const auto message = [&] {
      return fmt::format("trial {} of seed {}: {}", trial, rng.seed(), world.describe());
    };
    ASSERT_EQ(scattered, gathered) << message();
    double norm = 0.0;
    double error = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
      norm = std::max(norm, std::abs(static_cast<double>(expected[i])));
      error = std::max(error, std::abs(static_cast<double>(expected[i]) - scattered[i]));
    }
    // Terms may cancel: they are at most some 16 times the largest result here.
    const double terms = world.toy.top_k + 1 + world.config.ep_size;
    ASSERT_LE(error, 16.0 * terms * 0x1p-24 * norm) << message();
  }
}

// After the first call, which sizes what the communicator keeps.
TEST_F(RankEqualityTest, ForwardAllocatesNothing) {
  for (int trial = 0; trial < 20; ++trial) {
    World world = random_world();
    if (trial % 2 == 0) world.options.exchange.combine = CombineOrder::kRank;
    run_local_ranks(world.config.world_size(), [&](Communicator& communicator) {
      ParallelConfig config = world.config;
      config.rank = communicator.rank();
      const FusedMoeLayer layer = layer_of(world, config, communicator);
      Workspace workspace = layer.make_workspace(world.max_num_tokens);
      const size_t holder = world.holder(config);
      const int64_t first = world.first_token(holder);
      const MoeInput input = world.input(first, world.tokens[holder]);
      Floats out(input.hidden_states.size());
      layer.forward(input, workspace, out);
      const AllocationCount counter;
      layer.forward(input, workspace, out);
      EXPECT_EQ(counter.allocations(), 0) << world.describe();
    });
  }
}

class NoReduceTest : public RankEqualityTest {
 protected:
  NoReduceTest() {
    world.toy = {.num_experts = 5, .shared_intermediate_size = 7};
    world.config.ep_size = 3;
    world.experts = ExpertMap::create(5, 3, Placement::kRoundRobin);
    world.options.activations = ActivationDType::kF32;
    world.options.threads.count = 1;
    world.options.no_reduce = true;
    world.tokens = {11};
    world.max_num_tokens = 4;
    world.hidden_states = rng.normals(static_cast<size_t>(11 * world.toy.hidden_size));
  }
  void expect_refused(std::string_view why) {
    expect_error([&] { on_all_ranks(world); }, ErrorCode::kUnsupported, {"no_reduce", why});
  }

  World world;
};

TEST_F(NoReduceTest, TheRanksOutputsAddUpToTheResult) {
  const Floats expected = on_one_rank(world);
  std::vector<Floats> parts(3);
  run_local_ranks(3, [&](Communicator& communicator) {
    ParallelConfig config = world.config;
    config.rank = communicator.rank();
    const FusedMoeLayer layer = layer_of(world, config, communicator);
    Workspace workspace = layer.make_workspace(world.max_num_tokens);
    Floats& out = parts[static_cast<size_t>(config.rank)];
    out.resize(world.hidden_states.size());
    layer.forward(world.input(0, 11), workspace, out);
    EXPECT_EQ(layer.bytes_moved().collectives, 0);
  });
  for (size_t i = 0; i < expected.size(); ++i) {
    const float sum = parts[0][i] + parts[1][i] + parts[2][i];
    EXPECT_NEAR(sum, expected[i], 1e-5F * (1.0F + std::abs(expected[i])));
  }
}

// An engine that sends tokens itself: each rank gets those that its physical experts serve.
TEST_F(NoReduceTest, PhysicalIdsOfAnEngineThatDispatchesGiveItsRowsPartialSums) {
  world.config.dp_size = 3;
  world.options.skip_shared_experts = true;
  world.experts = ExpertMap::with_redundancy(5, {0, 1, 2, 3, 4, 2}, 3, Placement::kLinear);
  const FusedMoeLayer single(world.whole(), world.toy.expert_map(), world.options, nullptr);
  run_local_ranks(3, [&](Communicator& communicator) {
    ParallelConfig config = world.config;
    config.rank = communicator.rank();
    const FusedMoeLayer layer = layer_of(world, config, communicator);
    Workspace workspace = layer.make_workspace(world.max_num_tokens);
    // Rank r holds the physical experts 2 r and 2 r + 1; it is given r + 1 tokens for both.
    const int64_t count = config.rank + 1;
    std::vector<int32_t> physical;
    std::vector<int32_t> logical;
    for (int64_t t = 0; t < count; ++t) {
      for (const int p : {2 * config.rank, 2 * config.rank + 1}) {
        physical.push_back(p);
        logical.push_back(world.experts.logical(p));
      }
    }
    const Floats weights(physical.size(), 0.5F);
    MoeInput input = world.input(0, count);
    input.topk_ids = physical;
    input.topk_weights = weights;
    input.physical_ids = true;
    Floats out(input.hidden_states.size());
    layer.forward(input, workspace, out);
    input.topk_ids = logical;
    input.physical_ids = false;
    Floats expected(out.size());
    Workspace other = single.make_workspace(4);
    single.forward(input, other, expected);
    EXPECT_EQ(out, expected) << "rank " << config.rank;
    expect_error([&] { layer.forward(input, workspace, out); }, ErrorCode::kInvalidArgument,
                 {"physical ids"});
  });
}

TEST_F(NoReduceTest, RefusesOrderedSums) {
  world.options.exchange.combine = CombineOrder::kOrdered;
  expect_refused("ordered");
}

TEST_F(NoReduceTest, RefusesAnExchangeThatSends) {
  world.options.exchange.kind = ExchangeKind::kAllToAll;
  expect_refused("all_to_all");
}

TEST_F(NoReduceTest, RefusesPartsOfTokens) {
  world.config.sequence_parallel = true;
  world.tokens = {4, 4, 3};
  expect_refused("sequence_parallel");
}

TEST_F(NoReduceTest, RefusesSharedExpertsForTokensOfOtherGroups) {
  world.config.dp_size = 3;
  world.tokens = {4, 4, 3};
  expect_refused("skip_shared_experts");
}

}  // namespace
}  // namespace gantry::test
