#pragma once

// A world of ranks with made-up experts, for tests of the exchange alone: expert e of TP rank j
// turns hidden state x into (e + 1) * x + j, in small integers, so that sums are exact in any
// order.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <ostream>
#include <vector>

#include "kernels/base/log.h"
#include "parallel/token_exchange.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

using Floats = std::vector<float>;
using Ids = std::vector<int32_t>;

struct ExchangeCase {
  ParallelConfig config;
  ExchangeOptions options;
  std::vector<int64_t> tokens;  ///< of each token group; sequence parallel: of each rank
  int num_experts = 6;
  int64_t hidden = 3;
  int64_t top_k = 2;
  bool shared = false;  ///< the leading EP rank of a group adds 100 * x + 1
  uint64_t seed = 1;
};

inline void PrintTo(const ExchangeCase& c, std::ostream* out) {
  *out << "tp " << c.config.tp_size << " ep " << c.config.ep_size << " dp " << c.config.dp_size
       << (c.config.sequence_parallel ? " sp" : "") << " " << to_string(c.options.kind) << " "
       << to_string(c.options.combine) << " slots " << c.options.slots << " top-" << c.top_k
       << (c.shared ? " shared" : "") << " seed " << c.seed << " tokens";
  for (const int64_t count : c.tokens)
    *out << " " << count;
}

/// The whole batch of a case: drawn from its seed, alike on every rank.
struct ExchangeBatch {
  Floats hidden_states;  // [all, H]
  Ids topk_ids;          // [all, K]
  Floats topk_weights;   // [all, K]
  Ids id_to_rank;        // [E]

  static ExchangeBatch draw(const ExchangeCase& c) {
    SeededRng rng(c.seed);
    ExchangeBatch batch;
    const int64_t all = std::accumulate(c.tokens.begin(), c.tokens.end(), int64_t{0});
    for (int64_t i = 0; i < all * c.hidden; ++i)
      batch.hidden_states.push_back(static_cast<float>(rng.integer(-9, 9)));
    for (int64_t i = 0; i < all * c.top_k; ++i) {
      batch.topk_ids.push_back(static_cast<int32_t>(rng.integer(-1, c.num_experts - 1)));
      batch.topk_weights.push_back(static_cast<float>(rng.integer(1, 8)) / 4.0F);
    }
    for (int e = 0; e < c.num_experts; ++e)
      batch.id_to_rank.push_back(static_cast<int32_t>(rng.integer(0, c.config.ep_size - 1)));
    return batch;
  }
};

/// One rank of a case.
class ExchangeRank {
 public:
  ExchangeRank(const ExchangeCase& tested, const ExchangeBatch& all, Communicator& world)
      : c(tested),
        batch(all),
        config(c.config),
        exchange((config.rank = world.rank(), config), world,
                 {.hidden_size = c.hidden, .top_k = c.top_k, .shared_rows = c.shared}, c.options),
        scratch(exchange.make_scratch(max_tokens(), /*magnitude_values=*/0)) {
    const auto index =
        static_cast<size_t>(config.sequence_parallel ? config.rank : config.dp_rank());
    first = std::accumulate(c.tokens.begin(), c.tokens.begin() + static_cast<ptrdiff_t>(index),
                            int64_t{0});
    count = c.tokens[index];
  }

  [[nodiscard]] int64_t max_tokens() const {
    return std::max<int64_t>(1, *std::max_element(c.tokens.begin(), c.tokens.end()));
  }
  [[nodiscard]] TokenBatch own_batch() const {
    const auto part = [&](const auto& values, int64_t width) {
      return std::span(values).subspan(static_cast<size_t>(first * width),
                                       static_cast<size_t>(count * width));
    };
    return {.hidden_states = part(batch.hidden_states, c.hidden),
            .topk_ids = part(batch.topk_ids, c.top_k),
            .topk_weights = part(batch.topk_weights, c.top_k),
            .id_to_rank = batch.id_to_rank,
            .id_to_logical = {}};
  }
  [[nodiscard]] bool leads() const { return config.leads_dp_group(); }
  [[nodiscard]] bool computes(int32_t id) const {
    return id >= 0 && batch.id_to_rank[static_cast<size_t>(id)] == config.ep_rank();
  }
  /// What expert `id` of this TP rank gives for one value.
  [[nodiscard]] float expert(int32_t id, float x) const {
    return static_cast<float>(id + 1) * x + static_cast<float>(config.tp_rank());
  }
  [[nodiscard]] float shared_expert(float x) const {
    return 100.0F * x + static_cast<float>(config.tp_rank());
  }

  /// Dispatch, the experts, combine: the result of this rank's batch.
  Floats forward() {
    const ExchangedTokens tokens = exchange.dispatch(own_batch(), scratch);
    Floats own(static_cast<size_t>(tokens.own_tokens * c.hidden), -77.0F);
    if (exchange.ordered()) {
      ordered(tokens, own);
    } else {
      ranked(tokens, own);
    }
    if (!exchange.gathers()) return own;
    Floats out(static_cast<size_t>(count * c.hidden), -55.0F);
    exchange.gather(own, out, scratch);
    return out;
  }

  const ExchangeCase& c;
  const ExchangeBatch& batch;
  ParallelConfig config;
  TokenExchange exchange;
  ExchangeScratch scratch;
  int64_t first = 0;  ///< of the whole batch
  int64_t count = 0;

 private:
  void ranked(const ExchangedTokens& tokens, Floats& own) {
    Floats partial(tokens.hidden_states.size(), 0.0F);
    for (size_t i = 0; i < partial.size(); ++i) {
      const float x = tokens.hidden_states[i];
      const size_t token = i / static_cast<size_t>(c.hidden);
      for (size_t k = 0; k < static_cast<size_t>(c.top_k); ++k) {
        const size_t choice = token * static_cast<size_t>(c.top_k) + k;
        if (!computes(tokens.topk_ids[choice])) continue;
        partial[i] += tokens.topk_weights[choice] * expert(tokens.topk_ids[choice], x);
      }
    }
    if (c.shared && leads()) {
      const auto begin = static_cast<size_t>(tokens.group_begin * c.hidden);
      const auto values = static_cast<size_t>(tokens.group_tokens * c.hidden);
      for (size_t i = begin; i < begin + values; ++i)
        partial[i] += shared_expert(tokens.hidden_states[i]);
    }
    exchange.reduce(partial, c.hidden, own, scratch);
  }

  void ordered(const ExchangedTokens& tokens, Floats& own) {
    Floats rows(static_cast<size_t>(tokens.num_rows * c.hidden), -33.0F);
    for (size_t choice = 0; choice < tokens.topk_ids.size(); ++choice) {
      const int32_t row = tokens.choice_row[choice];
      if (row < 0) continue;
      for (int64_t h = 0; h < c.hidden; ++h) {
        const auto token = static_cast<int64_t>(choice) / c.top_k;
        const float x = tokens.hidden_states[static_cast<size_t>(token * c.hidden + h)];
        rows[static_cast<size_t>(row * c.hidden + h)] = expert(tokens.topk_ids[choice], x);
      }
    }
    exchange.reduce_ordered(rows, c.hidden, /*weighted=*/true, own, scratch);
    if (!c.shared) return;
    Floats shared;
    if (leads()) {
      const auto begin = static_cast<size_t>(tokens.group_begin * c.hidden);
      for (int64_t i = 0; i < tokens.group_tokens * c.hidden; ++i) {
        shared.push_back(shared_expert(tokens.hidden_states[begin + static_cast<size_t>(i)]));
      }
    }
    exchange.add_shared(shared, own, scratch);
  }
};

/// Runs `body` on every rank of a case.
inline void on_every_rank(const ExchangeCase& c, const std::function<void(ExchangeRank&)>& body) {
  const ExchangeBatch batch = ExchangeBatch::draw(c);
  run_local_ranks(c.config.world_size(), [&](Communicator& world) {
    ExchangeRank rank(c, batch, world);
    body(rank);
  });
}

inline int trials(int usual) {
  const char* text = std::getenv("GANTRY_TRIALS");
  return text == nullptr ? usual : std::max(usual, std::atoi(text));
}

// A random world: sizes that do not divide, groups without tokens, slots that do not suffice.
inline ExchangeCase random_case(SeededRng& rng) {
  ExchangeCase c;
  c.config.tp_size = static_cast<int>(rng.integer(1, 3));
  c.config.dp_size = static_cast<int>(rng.integer(1, 3));
  c.config.ep_size =
      c.config.dp_size * static_cast<int>(rng.integer(1, c.config.dp_size > 1 ? 2 : 4));
  c.config.sequence_parallel = rng.integer(0, 2) == 0;
  c.options.kind =
      rng.integer(0, 1) == 0 ? ExchangeKind::kAllGatherReduceScatter : ExchangeKind::kAllToAll;
  c.options.combine = rng.integer(0, 1) == 0 ? CombineOrder::kRank : CombineOrder::kOrdered;
  c.options.slots = static_cast<int>(rng.integer(0, 5));
  c.num_experts = static_cast<int>(rng.integer(1, 9));
  c.hidden = rng.integer(1, 5);
  c.top_k = rng.integer(1, 4);
  c.shared = rng.integer(0, 1) == 0;
  c.seed = static_cast<uint64_t>(rng.integer(0, 1 << 30));
  const int holders = c.config.sequence_parallel ? c.config.world_size() : c.config.dp_size;
  for (int i = 0; i < holders; ++i)
    c.tokens.push_back(rng.integer(0, 3) == 0 ? 0 : rng.integer(1, 9));
  return c;
}

class RandomExchangeTest : public testing::Test {
 protected:
  RandomExchangeTest() { set_log_level(LogLevel::kWarn); }  // slots overflow on purpose

  template <typename Body>
  void for_random_cases(Body body) {
    for (int trial = 0; trial < trials(60); ++trial) {
      const ExchangeCase c = random_case(rng);
      SCOPED_TRACE(testing::PrintToString(c));
      body(c);
      if (HasFailure()) return;
    }
  }

  SeededRng rng;
};

}  // namespace gantry::test
