#include "parallel/token_exchange.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

constexpr int64_t kHidden = 3;
constexpr int64_t kTopK = 2;

using Floats = std::vector<float>;
using Ids = std::vector<int32_t>;

// The tokens [begin, begin + count) of the whole batch: every value tells where it belongs.
struct Tokens {
  Floats hidden_states;
  Ids topk_ids;
  Floats topk_weights;
};

Tokens make_tokens(int64_t begin, int64_t count) {
  Tokens tokens;
  for (int64_t t = begin; t < begin + count; ++t) {
    for (int64_t h = 0; h < kHidden; ++h) {
      tokens.hidden_states.push_back(static_cast<float>(t * 10 + h));
    }
    for (int64_t k = 0; k < kTopK; ++k) {
      tokens.topk_ids.push_back(static_cast<int32_t>(t * 2 + k));
      tokens.topk_weights.push_back(static_cast<float>(t) + static_cast<float>(k) / 4);
    }
  }
  return tokens;
}

template <typename T>
std::vector<T> to_vector(std::span<const T> values) {
  return {values.begin(), values.end()};
}

struct World {
  ParallelConfig config;
  std::vector<int64_t> group_tokens;  ///< of each DP group
};

void PrintTo(const World& world, std::ostream* out) {
  *out << "tp" << world.config.tp_size << "_ep" << world.config.ep_size << "_dp"
       << world.config.dp_size;
  for (const int64_t count : world.group_tokens)
    *out << "_" << count;
}

class TokenExchangeTest : public testing::TestWithParam<World> {
 protected:
  // Runs `body(config of the rank, communicator, first own token, own tokens)` on every rank.
  template <typename Body>
  void on_every_rank(Body body) const {
    run_local_ranks(GetParam().config.world_size(), [&](Communicator& world) {
      ParallelConfig config = GetParam().config;
      config.rank = world.rank();
      const auto group = GetParam().group_tokens.begin() + config.dp_rank();
      body(config, world, std::accumulate(GetParam().group_tokens.begin(), group, int64_t{0}),
           *group);
    });
  }

  const int64_t total =
      std::accumulate(GetParam().group_tokens.begin(), GetParam().group_tokens.end(), int64_t{0});
};

TEST_P(TokenExchangeTest, DispatchGivesAllTokensInTheOrderOfTheGroups) {
  on_every_rank(
      [&](const ParallelConfig& config, Communicator& world, int64_t begin, int64_t count) {
        const Tokens own = make_tokens(begin, count);
        const Tokens all = make_tokens(0, total);
        TokenExchange exchange(config, world, kHidden, kTopK);
        for (int round = 0; round < 2; ++round) {  // the second finds the buffers of the first
          const ExchangedTokens got =
              exchange.dispatch(own.hidden_states, own.topk_ids, own.topk_weights);
          EXPECT_EQ(got.num_tokens, total);
          EXPECT_EQ(got.own_begin, begin);
          EXPECT_EQ(to_vector(got.hidden_states), all.hidden_states);
          EXPECT_EQ(to_vector(got.topk_ids), all.topk_ids);
          EXPECT_EQ(to_vector(got.topk_weights), all.topk_weights);
        }
      });
}

TEST_P(TokenExchangeTest, CombineSumsOverAllRanksAndKeepsTheOwnTokens) {
  on_every_rank(
      [&](const ParallelConfig& config, Communicator& world, int64_t begin, int64_t count) {
        const Tokens own = make_tokens(begin, count);
        TokenExchange exchange(config, world, kHidden, kTopK);
        exchange.dispatch(own.hidden_states, own.topk_ids, own.topk_weights);
        // Rank r contributes (r + 1) times the value that names the element.
        Floats partial = make_tokens(0, total).hidden_states;
        for (float& value : partial)
          value *= static_cast<float>(world.rank() + 1);
        Floats out(static_cast<size_t>(count * kHidden), -77.0F);
        exchange.combine(partial, out);
        const int ranks = world.size();
        const auto factor = static_cast<float>(ranks * (ranks + 1) / 2);
        for (size_t i = 0; i < out.size(); ++i)
          EXPECT_EQ(out[i], own.hidden_states[i] * factor);
      });
}

TEST_P(TokenExchangeTest, CountsTheBytesThatCameFromOtherRanks) {
  on_every_rank(
      [&](const ParallelConfig& config, Communicator& world, int64_t begin, int64_t count) {
        const Tokens own = make_tokens(begin, count);
        TokenExchange exchange(config, world, kHidden, kTopK);
        exchange.dispatch(own.hidden_states, own.topk_ids, own.topk_weights);
        const bool speaks = config.tp_rank() == 0 && config.leads_dp_group();
        const int64_t foreign = total - (speaks ? count : 0);
        // A token is H hidden values, K ids and K weights of 4 bytes.
        const int64_t dispatched = config.dp_size == 1 ? 0 : foreign * (kHidden + 2 * kTopK) * 4;
        EXPECT_EQ(exchange.bytes_received(), dispatched);
      });
}

INSTANTIATE_TEST_SUITE_P(Worlds, TokenExchangeTest,
                         testing::Values(World{{}, {5}}, World{{}, {0}},
                                         World{{.tp_size = 2, .ep_size = 2}, {4}},
                                         World{{.ep_size = 2, .dp_size = 2}, {3, 2}},
                                         World{{.ep_size = 2, .dp_size = 2}, {0, 4}},
                                         World{{.ep_size = 2, .dp_size = 2}, {1, 0}},
                                         World{{.ep_size = 2, .dp_size = 2}, {0, 0}},
                                         World{{.ep_size = 3, .dp_size = 3}, {2, 0, 7}},
                                         World{{.ep_size = 4, .dp_size = 2}, {1, 6}},
                                         World{{.ep_size = 4, .dp_size = 4}, {4, 1, 0, 2}},
                                         World{{.tp_size = 2, .ep_size = 2, .dp_size = 2}, {2, 5}},
                                         World{{.tp_size = 2, .ep_size = 4, .dp_size = 2}, {3, 0}},
                                         World{{.tp_size = 3, .ep_size = 2, .dp_size = 2}, {1, 1}}),
                         [](const auto& tested) { return testing::PrintToString(tested.param); });

TEST(TokenExchangeSingleTest, WithoutTokenGroupsNothingMoves) {
  const auto self = make_self_communicator();
  TokenExchange exchange({}, *self, kHidden, kTopK);
  const Tokens own = make_tokens(0, 4);
  const ExchangedTokens got = exchange.dispatch(own.hidden_states, own.topk_ids, own.topk_weights);
  EXPECT_EQ(got.hidden_states.data(), own.hidden_states.data());
  EXPECT_EQ(got.topk_ids.data(), own.topk_ids.data());
  EXPECT_EQ(got.topk_weights.data(), own.topk_weights.data());
  Floats partial = own.hidden_states;
  Floats out(partial.size());
  exchange.combine(partial, out);
  EXPECT_EQ(out, own.hidden_states);
  EXPECT_EQ(exchange.bytes_received(), 0);
}

// EP groups hold different numbers of values, and one of them none at all.
TEST(TokenExchangeTest, TakesTheLargestOfEachTensorParallelGroup) {
  run_local_ranks(6, [](Communicator& world) {
    const ParallelConfig config = {.tp_size = 2, .ep_size = 3, .rank = world.rank()};
    TokenExchange exchange(config, world, kHidden, kTopK);
    for (int round = 0; round < 2; ++round) {  // the second time with other sizes
      const auto count = static_cast<size_t>(config.ep_rank() * (round + 1));
      Floats values(count);
      Floats expected(count);
      for (size_t i = 0; i < count; ++i) {
        const auto base = static_cast<float>(10 * config.ep_rank()) + static_cast<float>(i);
        const bool odd = i % 2 == 1;
        values[i] = base + (odd == (config.tp_rank() == 1) ? 5.0F : 0.0F);
        expected[i] = base + 5.0F;
      }
      exchange.max_over_tp(values);
      EXPECT_EQ(values, expected) << "rank " << world.rank() << ", round " << round;
    }
  });
}

TEST(TokenExchangeTest, NanIsTheLargestWhicheverRankHasIt) {
  run_local_ranks(2, [](Communicator& world) {
    TokenExchange exchange({.tp_size = 2, .rank = world.rank()}, world, kHidden, kTopK);
    Floats values = {1.0F, 2.0F, 3.0F};
    values[static_cast<size_t>(world.rank())] = std::numeric_limits<float>::quiet_NaN();
    exchange.max_over_tp(values);
    EXPECT_TRUE(std::isnan(values[0]));
    EXPECT_TRUE(std::isnan(values[1]));
    EXPECT_EQ(values[2], 3.0F);
  });
}

TEST(TokenExchangeErrorTest, RefusesAWorldOfAnotherShape) {
  const auto self = make_self_communicator();
  const auto code = ErrorCode::kInvalidArgument;
  expect_error([&] { TokenExchange({.ep_size = 2}, *self, 3, 2); }, code, {"rank 0 of 2"});
  expect_error([&] { TokenExchange({.ep_size = 0}, *self, 3, 2); }, code, {"ep_size"});
  expect_error([&] { TokenExchange({}, *self, 0, 2); }, code, {"hidden size 0"});
  expect_error([&] { TokenExchange({}, *self, 3, 0); }, code, {"top-k 0"});
}

TEST(TokenExchangeErrorTest, RefusesBuffersThatAreNotThoseOfTheTokens) {
  const auto self = make_self_communicator();
  TokenExchange exchange({}, *self, kHidden, kTopK);
  const auto dispatch = [&](size_t hidden, size_t ids, size_t weights) {
    exchange.dispatch(Floats(hidden), Ids(ids), Floats(weights));
  };
  const auto code = ErrorCode::kInvalidArgument;
  expect_error([&] { dispatch(7, 4, 4); }, code, {"dispatch: 7 hidden values"});
  expect_error([&] { dispatch(6, 3, 4); }, code, {"3 ids"});
  expect_error([&] { dispatch(6, 4, 5); }, code, {"5 weights"});
  dispatch(6, 4, 4);
  Floats right(6);
  Floats wrong(3);
  expect_error([&] { exchange.combine(wrong, right); }, code, {"combine", "found 3 and 6"});
  expect_error([&] { exchange.combine(right, wrong); }, code, {"combine", "found 6 and 3"});
}

TEST(TokenExchangeErrorTest, RefusesRanksOfAGroupThatHoldDifferentTokens) {
  const auto body = [](Communicator& world) {
    const ParallelConfig config = {.tp_size = 2, .ep_size = 2, .dp_size = 2, .rank = world.rank()};
    TokenExchange exchange(config, world, kHidden, kTopK);
    const Tokens own = make_tokens(0, world.rank() == 3 ? 2 : 1);
    exchange.dispatch(own.hidden_states, own.topk_ids, own.topk_weights);
  };
  expect_error([&] { run_local_ranks(4, body); }, ErrorCode::kInvalidArgument,
               {"rank 3 has 2 tokens", "leader of its token group has 1"});
}

TEST(TokenExchangeErrorTest, TellsEveryRankOfAGroupThatHoldsDifferentTokens) {
  run_local_ranks(4, [](Communicator& world) {
    const ParallelConfig config = {.tp_size = 2, .ep_size = 2, .dp_size = 2, .rank = world.rank()};
    TokenExchange exchange(config, world, kHidden, kTopK);
    const Tokens own = make_tokens(0, world.rank() == 3 ? 2 : 1);
    expect_error([&] { exchange.dispatch(own.hidden_states, own.topk_ids, own.topk_weights); },
                 ErrorCode::kInvalidArgument, {"rank 3 has 2 tokens"});
  });
}

}  // namespace
}  // namespace gantry::test
