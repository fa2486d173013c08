// How many bytes an exchange moves, next to the formula, and that it allocates nothing.

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/parallel/exchange_world.h"
#include "tests/support/allocation_count.h"

namespace gantry::test {
namespace {

constexpr auto kGather = ExchangeKind::kAllGatherReduceScatter;
constexpr auto kOrdered = CombineOrder::kOrdered;

// The formula of token_exchange.h, by loops over the whole batch.
struct ExpectedBytes {
  int64_t dispatch = 0;
  int64_t combine = 0;
};

class ByteCount {
 public:
  ByteCount(const ExchangeCase& tested, const ExchangeBatch& all) : c(tested), batch(all) {
    const int64_t group_size = c.config.token_group_size();
    int64_t first = 0;
    for (int rank = 0; rank < c.config.world_size(); ++rank) {
      const auto group = rank / group_size;
      int64_t own = 0;
      if (c.config.sequence_parallel) {
        own = c.tokens[static_cast<size_t>(rank)];
      } else {
        const int64_t tokens = c.tokens[static_cast<size_t>(group)];
        own = tokens / group_size + (rank % group_size < tokens % group_size ? 1 : 0);
      }
      owned.push_back({first, first + own});
      first += own;
    }
  }

  [[nodiscard]] bool computes(int rank, int64_t token, int owner) const {
    if (c.options.kind == kGather) return true;
    const int ep_rank = rank / c.config.tp_size;
    const int per_group = c.config.ep_ranks_per_dp_group();
    const int leader = owner / c.config.token_group_size() * per_group;
    if (c.shared && ep_rank == leader) return true;
    return choices(rank, token) > 0;
  }
  [[nodiscard]] int64_t choices(int rank, int64_t token) const {
    int64_t count = 0;
    for (int64_t k = 0; k < c.top_k; ++k) {
      const int32_t id = batch.topk_ids[static_cast<size_t>(token * c.top_k + k)];
      count += id >= 0 && batch.id_to_rank[static_cast<size_t>(id)] == rank / c.config.tp_size;
    }
    return count;
  }

  [[nodiscard]] ExpectedBytes received_by(int rank) const {
    ExpectedBytes bytes;
    const int64_t payload = 4 * (c.hidden + 2 * c.top_k);
    const int group_size = c.config.token_group_size();
    const bool moves = c.config.dp_size > 1 || c.config.sequence_parallel;
    for (int other = 0; other < c.config.world_size(); ++other) {
      if (other == rank) continue;
      const bool siblings = other / group_size == rank / group_size;
      if (moves) {
        int64_t tokens = 0;
        for (int64_t t = owned[static_cast<size_t>(other)].begin;
             t < owned[static_cast<size_t>(other)].end; ++t)
          tokens += computes(rank, t, other) ? 1 : 0;
        bytes.dispatch += 32;
        if (c.options.kind == kGather || c.config.sequence_parallel || !siblings) {
          bytes.dispatch += payload * std::max<int64_t>(c.options.slots, tokens);
        }
      }
      const Slice own = owned[static_cast<size_t>(rank)];
      for (int64_t t = own.begin; t < own.end; ++t) {
        const int64_t rows = c.options.combine == kOrdered ? choices(other, t)
                             : computes(other, t, rank)    ? 1
                                                           : 0;
        bytes.combine += 4 * c.hidden * rows;
      }
      const int leading = rank / group_size * c.config.ep_ranks_per_dp_group();
      if (c.shared && c.options.combine == kOrdered && other / c.config.tp_size == leading) {
        bytes.combine += 4 * c.hidden * own.size();
      }
      if (siblings && !c.config.sequence_parallel) {
        bytes.combine += 4 * c.hidden * owned[static_cast<size_t>(other)].size();
      }
    }
    return bytes;
  }

  const ExchangeCase& c;
  const ExchangeBatch& batch;
  std::vector<Slice> owned;  // tokens of the whole batch, by rank
};

TEST_F(RandomExchangeTest, MovesTheBytesOfTheFormula) {
  for_random_cases([](const ExchangeCase& c) {
    std::vector<ExchangeBytes> moved(static_cast<size_t>(c.config.world_size()));
    on_every_rank(c, [&](ExchangeRank& rank) {
      rank.forward();
      moved[static_cast<size_t>(rank.config.rank)] = rank.exchange.bytes();
    });
    const ExchangeBatch batch = ExchangeBatch::draw(c);
    const ByteCount expected(c, batch);
    ExchangeBytes total;
    for (int rank = 0; rank < c.config.world_size(); ++rank) {
      const ExchangeBytes& found = moved[static_cast<size_t>(rank)];
      EXPECT_EQ(found.dispatch_received, expected.received_by(rank).dispatch) << "rank " << rank;
      EXPECT_EQ(found.combine_received, expected.received_by(rank).combine) << "rank " << rank;
      total += found;
    }
    EXPECT_EQ(total.dispatch_sent, total.dispatch_received);
    EXPECT_EQ(total.combine_sent, total.combine_received);
  });
}

TEST_F(RandomExchangeTest, AllocatesNothing) {
  for_random_cases([](const ExchangeCase& c) {
    if (c.options.combine == kOrdered || c.shared) return;
    on_every_rank(c, [&](ExchangeRank& rank) {
      Floats partial(static_cast<size_t>(1000 * c.hidden));
      Floats own(static_cast<size_t>(1000 * c.hidden));
      Floats out(static_cast<size_t>(rank.count * c.hidden));
      const auto exchange = [&] {
        const ExchangedTokens tokens = rank.exchange.dispatch(rank.own_batch(), rank.scratch);
        const auto own_values =
            std::span(own).first(static_cast<size_t>(tokens.own_tokens * c.hidden));
        rank.exchange.reduce(std::span(partial).first(tokens.hidden_states.size()), c.hidden,
                             own_values, rank.scratch);
        if (rank.exchange.gathers()) rank.exchange.gather(own_values, out, rank.scratch);
      };
      exchange();  // communicators keep lists of parts from their first call on
      const AllocationCount counter;
      exchange();
      EXPECT_EQ(counter.allocations(), 0);
    });
  });
}

}  // namespace
}  // namespace gantry::test
