// Exchange strategies against formulas: what arrives, what comes out, in which order it is added,
// how many bytes move.

#include "parallel/token_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/parallel/exchange_world.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

constexpr auto kGather = ExchangeKind::kAllGatherReduceScatter;
constexpr auto kScatter = ExchangeKind::kAllToAll;
constexpr auto kOrdered = CombineOrder::kOrdered;

// out = sum over choices and TP ranks of w * expert(x), plus the shared expert of each TP rank.
Floats expected_output(const ExchangeRank& rank) {
  const ExchangeCase& c = rank.c;
  Floats out;
  for (int64_t i = rank.first * c.hidden; i < (rank.first + rank.count) * c.hidden; ++i) {
    const float x = rank.batch.hidden_states[static_cast<size_t>(i)];
    float sum = 0.0F;
    for (int j = 0; j < c.config.tp_size; ++j) {
      for (int64_t k = 0; k < c.top_k; ++k) {
        const auto choice = static_cast<size_t>(i / c.hidden * c.top_k + k);
        const int32_t id = rank.batch.topk_ids[choice];
        if (id < 0) continue;
        sum += rank.batch.topk_weights[choice] *
               (static_cast<float>(id + 1) * x + static_cast<float>(j));
      }
      if (c.shared) sum += 100.0F * x + static_cast<float>(j);
    }
    out.push_back(sum);
  }
  return out;
}

TEST_F(RandomExchangeTest, GivesEveryRankTheSumOfItsTokens) {
  for_random_cases([](const ExchangeCase& c) {
    on_every_rank(c, [](ExchangeRank& rank) {
      for (int round = 0; round < 2; ++round) {  // the second finds the buffers of the first
        EXPECT_EQ(rank.forward(), expected_output(rank)) << "rank " << rank.config.rank;
      }
    });
  });
}

// Which tokens a rank computes on, in which order, and which of their choices.
TEST_F(RandomExchangeTest, BringsEveryTokenWhereItIsComputedOnceAndInOrder) {
  for_random_cases([](const ExchangeCase& c) {
    on_every_rank(c, [&](ExchangeRank& rank) {
      const ExchangedTokens got = rank.exchange.dispatch(rank.own_batch(), rank.scratch);
      const bool everything = rank.exchange.choice().kind == kGather;
      Floats hidden;
      Ids computed;
      Floats weights;
      const auto all = static_cast<int64_t>(rank.batch.hidden_states.size()) / c.hidden;
      int64_t own_group_end = 0;
      for (int64_t holder = 0, token = 0; token < all; ++token) {
        while (token >= own_group_end) {
          own_group_end += c.tokens[static_cast<size_t>(holder++)];
        }
        const int64_t group =
            c.config.sequence_parallel ? (holder - 1) / c.config.token_group_size() : holder - 1;
        bool wanted = everything || (c.shared && rank.leads() && group == rank.config.dp_rank());
        const auto first = token * c.top_k;
        for (int64_t choice = first; choice < first + c.top_k; ++choice)
          wanted |= rank.computes(rank.batch.topk_ids[static_cast<size_t>(choice)]);
        if (!wanted) continue;
        for (int64_t i = token * c.hidden; i < (token + 1) * c.hidden; ++i)
          hidden.push_back(rank.batch.hidden_states[static_cast<size_t>(i)]);
        for (int64_t choice = first; choice < first + c.top_k; ++choice) {
          const int32_t id = rank.batch.topk_ids[static_cast<size_t>(choice)];
          computed.push_back(everything || rank.computes(id) ? id : -1);
          weights.push_back(rank.batch.topk_weights[static_cast<size_t>(choice)]);
        }
      }
      EXPECT_EQ(Floats(got.hidden_states.begin(), got.hidden_states.end()), hidden);
      EXPECT_EQ(Ids(got.topk_ids.begin(), got.topk_ids.end()), computed);
      EXPECT_EQ(Floats(got.topk_weights.begin(), got.topk_weights.end()), weights);
    });
  });
}

// Sums of values that no two orders round alike.
TEST(TokenExchangeOrderTest, AddsRanksInRankOrderWithEitherExchange) {
  for (const ExchangeKind kind : {kGather, kScatter}) {
    const ExchangeCase c{.config = {.tp_size = 2, .ep_size = 3},
                         .options = {.kind = kind},
                         .tokens = {7},
                         .num_experts = 3,
                         .top_k = 3};
    ExchangeBatch batch = ExchangeBatch::draw(c);
    batch.id_to_rank = {0, 1, 2};
    for (size_t i = 0; i < batch.topk_ids.size(); ++i)
      batch.topk_ids[i] = static_cast<int32_t>(i % 3);
    SeededRng rng(5);
    const Floats values = rng.normals(6 * 21);  // [rank, T * H]
    Floats expected(21, 0.0F);
    for (size_t i = 0; i < values.size(); ++i)
      expected[i % 21] += values[i];
    run_local_ranks(6, [&](Communicator& world) {
      ExchangeRank rank(c, batch, world);
      const ExchangedTokens tokens = rank.exchange.dispatch(rank.own_batch(), rank.scratch);
      Floats own(static_cast<size_t>(tokens.own_tokens * 3));
      rank.exchange.reduce(std::span(values).subspan(static_cast<size_t>(world.rank()) * 21, 21), 3,
                           own, rank.scratch);
      Floats out(21);
      rank.exchange.gather(own, out, rank.scratch);
      EXPECT_EQ(out, expected) << "rank " << world.rank();
    });
  }
}

TEST(TokenExchangeOrderTest, OrderedAddsChoicesInAscendingExpertIdWhereverTheyAreComputed) {
  // Physical ids 0..5 hold the logical experts 5, 0, 4, 1, 3, 2.
  const Ids to_logical = {5, 0, 4, 1, 3, 2};
  const ExchangeCase c{.config = {.ep_size = 3, .dp_size = 3},
                       .options = {.combine = kOrdered},
                       .tokens = {4, 0, 5},
                       .top_k = 4};
  ExchangeBatch batch = ExchangeBatch::draw(c);
  SeededRng rng(9);
  const Floats values = rng.normals(6 * 3);  // what each expert gives, whatever the token
  for (float& weight : batch.topk_weights)
    weight = rng.uniform(0.1F, 1.0F);
  run_local_ranks(3, [&](Communicator& world) {
    ExchangeRank rank(c, batch, world);
    TokenBatch own_batch = rank.own_batch();
    own_batch.id_to_logical = to_logical;
    const ExchangedTokens tokens = rank.exchange.dispatch(own_batch, rank.scratch);
    Floats rows(static_cast<size_t>(tokens.num_rows * 3));
    for (size_t choice = 0; choice < tokens.topk_ids.size(); ++choice) {
      if (tokens.choice_row[choice] < 0) continue;
      std::copy_n(values.begin() + tokens.topk_ids[choice] * 3, 3,
                  rows.begin() + tokens.choice_row[choice] * 3);
    }
    Floats own(static_cast<size_t>(tokens.own_tokens * 3));
    rank.exchange.reduce_ordered(rows, 3, /*weighted=*/true, own, rank.scratch);
    Floats expected(own.size(), 0.0F);
    for (size_t t = 0; t < expected.size() / 3; ++t) {
      for (int32_t logical = 0; logical < 6; ++logical) {
        for (size_t k = 0; k < 4; ++k) {
          const int32_t id = own_batch.topk_ids[t * 4 + k];
          if (id < 0 || to_logical[static_cast<size_t>(id)] != logical) continue;
          for (size_t h = 0; h < 3; ++h) {
            const float product =
                own_batch.topk_weights[t * 4 + k] * values[static_cast<size_t>(id) * 3 + h];
            expected[t * 3 + h] += product;
          }
        }
      }
    }
    EXPECT_EQ(own, expected) << "rank " << world.rank();
  });
}

TEST(TokenExchangeTest, WithoutTokenGroupsNothingMovesInDispatch) {
  const ExchangeCase c{.config = {.ep_size = 2}, .options = {.kind = kGather}, .tokens = {4}};
  on_every_rank(c, [](ExchangeRank& rank) {
    const TokenBatch batch = rank.own_batch();
    const ExchangedTokens got = rank.exchange.dispatch(batch, rank.scratch);
    EXPECT_EQ(got.hidden_states.data(), batch.hidden_states.data());
    EXPECT_EQ(rank.exchange.bytes().collectives, 0);
  });
}

TEST(TokenExchangeTest, SlotsThatSufficeSaveACollectiveAndOthersAreToldAbout) {
  for (const auto& [slots, collectives, overflows] :
       {std::tuple{0, 2, 0}, std::tuple{3, 2, 1}, std::tuple{4, 1, 0}}) {
    const ExchangeCase c{.config = {.ep_size = 2, .dp_size = 2},
                         .options = {.kind = kScatter, .slots = slots},
                         .tokens = {4, 1},
                         .num_experts = 1,
                         .top_k = 1};
    ExchangeBatch batch = ExchangeBatch::draw(c);
    batch.id_to_rank = {1};
    batch.topk_ids.assign(5, 0);  // all tokens to one expert
    run_local_ranks(2, [&, wanted = collectives, told = overflows](Communicator& world) {
      ExchangeRank rank(c, batch, world);
      const ExchangedTokens got = rank.exchange.dispatch(rank.own_batch(), rank.scratch);
      EXPECT_EQ(got.num_tokens, world.rank() == 1 ? 5 : 0);
      EXPECT_EQ(rank.exchange.bytes().collectives, wanted);
      EXPECT_EQ(rank.exchange.bytes().overflows, told);
    });
  }
}

TEST(TokenExchangeTest, EveryRankHearsThatSomeRankHasTokensLeft) {
  for (const ExchangeKind kind : {kGather, kScatter}) {
    const ExchangeCase c{
        .config = {.ep_size = 3, .dp_size = 3}, .options = {.kind = kind}, .tokens = {1, 2, 0}};
    on_every_rank(c, [](ExchangeRank& rank) {
      TokenBatch batch = rank.own_batch();
      batch.remaining = rank.config.rank == 1 ? 7 : 0;
      EXPECT_TRUE(rank.exchange.dispatch(batch, rank.scratch).more);
      batch.remaining = 0;
      EXPECT_FALSE(rank.exchange.dispatch(batch, rank.scratch).more);
    });
  }
}

// EP groups hold different numbers of values, and one of them none at all.
TEST(TokenExchangeTest, TakesTheLargestOfEachTensorParallelGroup) {
  run_local_ranks(6, [](Communicator& world) {
    const ParallelConfig config = {.tp_size = 2, .ep_size = 3, .rank = world.rank()};
    TokenExchange exchange(config, world, {.hidden_size = 3, .top_k = 2}, {});
    ExchangeScratch scratch = exchange.make_scratch(1, 4);
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
      exchange.max_over_tp(values, scratch);
      EXPECT_EQ(values, expected) << "rank " << world.rank() << ", round " << round;
    }
    EXPECT_EQ(exchange.bytes().magnitudes_received, 4 * 3 * config.ep_rank());
  });
}

TEST(TokenExchangeTest, NanIsTheLargestWhicheverRankHasIt) {
  run_local_ranks(2, [](Communicator& world) {
    TokenExchange exchange({.tp_size = 2, .rank = world.rank()}, world,
                           {.hidden_size = 3, .top_k = 2}, {});
    ExchangeScratch scratch = exchange.make_scratch(1, 3);
    Floats values = {1.0F, 2.0F, 3.0F};
    values[static_cast<size_t>(world.rank())] = std::numeric_limits<float>::quiet_NaN();
    exchange.max_over_tp(values, scratch);
    EXPECT_TRUE(std::isnan(values[0]));
    EXPECT_TRUE(std::isnan(values[1]));
    EXPECT_EQ(values[2], 3.0F);
  });
}

TEST(ExchangeChoiceTest, AutoFollowsTheShareOfRanksThatATokenGoesTo) {
  const auto kind = [](int ep, int64_t k) {
    return choose_exchange(ExchangeKind::kAuto, {.ep_size = ep}, k).kind;
  };
  EXPECT_EQ(kind(1, 2), kGather);
  EXPECT_EQ(kind(2, 2), kGather);
  EXPECT_EQ(kind(2, 1), kScatter);
  EXPECT_EQ(kind(8, 8), kGather);
  EXPECT_EQ(kind(16, 8), kScatter);
  EXPECT_NEAR(expected_destinations(8, 8), 8.0 * (1.0 - std::pow(7.0 / 8.0, 8)), 1e-12);
  const ExchangeChoice asked = choose_exchange(kScatter, {.ep_size = 2}, 8);
  EXPECT_EQ(asked.kind, kScatter);
  EXPECT_EQ(asked.reason, "as asked");
}

TEST(ExchangeChoiceTest, NamesAreReadAsTheyAreWritten) {
  for (const ExchangeKind kind : {ExchangeKind::kAuto, kGather, kScatter})
    EXPECT_EQ(parse_exchange_kind(to_string(kind)), kind);
  for (const CombineOrder order : {CombineOrder::kRank, kOrdered})
    EXPECT_EQ(parse_combine_order(to_string(order)), order);
  expect_error([] { parse_exchange_kind("deepep"); }, ErrorCode::kInvalidArgument, {"'deepep'"});
  expect_error([] { parse_combine_order(""); }, ErrorCode::kInvalidArgument, {"combine"});
}

TEST(TokenExchangeErrorTest, RefusesAWorldOfAnotherShape) {
  const auto self = make_self_communicator();
  const auto code = ErrorCode::kInvalidArgument;
  const auto make = [&](const ParallelConfig& config, const TokenExchange::Shape& shape,
                        const ExchangeOptions& options) {
    const TokenExchange exchange(config, *self, shape, options);
  };
  expect_error([&] { make({.ep_size = 2}, {.hidden_size = 3, .top_k = 2}, {}); }, code,
               {"rank 0 of 2"});
  expect_error([&] { make({.ep_size = 0}, {.hidden_size = 3, .top_k = 2}, {}); }, code,
               {"ep_size"});
  expect_error([&] { make({}, {.hidden_size = 0, .top_k = 2}, {}); }, code, {"hidden size 0"});
  expect_error([&] { make({}, {.hidden_size = 3, .top_k = 2}, {.slots = -1}); }, code, {"slots"});
}

TEST(TokenExchangeErrorTest, RefusesSizesThatDoNotFit) {
  const auto self = make_self_communicator();
  TokenExchange exchange({}, *self, {.hidden_size = 3, .top_k = 2}, {});
  ExchangeScratch scratch = exchange.make_scratch(2, 0);
  const Ids ranks = {0, 0};
  const auto dispatch = [&](size_t hidden, size_t ids, size_t weights, int32_t id = 0) {
    exchange.dispatch({.hidden_states = Floats(hidden),
                       .topk_ids = Ids(ids, id),
                       .topk_weights = Floats(weights),
                       .id_to_rank = ranks,
                       .id_to_logical = {}},
                      scratch);
  };
  const auto code = ErrorCode::kInvalidArgument;
  expect_error([&] { dispatch(7, 4, 4); }, code, {"dispatch: 7 hidden values"});
  expect_error([&] { dispatch(6, 3, 4); }, code, {"3 ids"});
  expect_error([&] { dispatch(6, 4, 5); }, code, {"5 weights"});
  expect_error([&] { dispatch(9, 6, 6); }, code, {"3 tokens", "made for 2"});
  expect_error([&] { dispatch(6, 4, 4, 2); }, code, {"found 2"});
  expect_error([&] { dispatch(6, 4, 4, -2); }, code, {"found -2"});
  dispatch(6, 4, 4);
  Floats right(6);
  Floats wrong(3);
  expect_error([&] { exchange.reduce(wrong, 3, right, scratch); }, code, {"combine"});
  expect_error([&] { exchange.reduce(right, 3, wrong, scratch); }, code, {"combine"});
  expect_error([&] { exchange.reduce_ordered(right, 3, true, right, scratch); }, code,
               {"rank order"});
  expect_error([&] { exchange.max_over_tp(right, scratch); }, code, {"magnitudes"});
}

// Every rank finds the mistake by itself: none of them waits for one that threw.
TEST(TokenExchangeErrorTest, TellsEveryRankThatAGroupHoldsDifferentTokens) {
  for (const ExchangeKind kind : {kGather, kScatter}) {
    run_local_ranks(4, [&](Communicator& world) {
      const ParallelConfig config = {
          .tp_size = 2, .ep_size = 2, .dp_size = 2, .rank = world.rank()};
      TokenExchange exchange(config, world, {.hidden_size = 3, .top_k = 2}, {.kind = kind});
      ExchangeScratch scratch = exchange.make_scratch(2, 0);
      const size_t count = world.rank() == 3 ? 2 : 1;
      const Ids ranks = {0, 1};
      const Floats hidden(count * 3);
      const Ids ids(count * 2);
      const Floats weights(count * 2);
      expect_error(
          [&] {
            exchange.dispatch({.hidden_states = hidden,
                               .topk_ids = ids,
                               .topk_weights = weights,
                               .id_to_rank = ranks,
                               .id_to_logical = {}},
                              scratch);
          },
          ErrorCode::kInvalidArgument, {"rank 3 has 2 tokens", "leader of its token group has 1"});
    });
  }
}

TEST(TokenExchangeErrorTest, TellsEveryRankThatScratchesHaveDifferentSizes) {
  run_local_ranks(2, [](Communicator& world) {
    const ParallelConfig config = {.ep_size = 2, .dp_size = 2, .rank = world.rank()};
    TokenExchange exchange(config, world, {.hidden_size = 3, .top_k = 2}, {});
    ExchangeScratch scratch = exchange.make_scratch(2 + world.rank(), 0);
    const Ids ranks = {0, 1};
    expect_error([&] { exchange.dispatch({.id_to_rank = ranks}, scratch); },
                 ErrorCode::kInvalidArgument, {"was made for"});
  });
}

}  // namespace
}  // namespace gantry::test
