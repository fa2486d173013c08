#include "parallel/load_counters.h"

#include <gtest/gtest.h>

#include <deque>

#include "tests/support/expect_error.h"
#include "tests/support/random_maps.h"

namespace gantry::test {
namespace {

using Counts = std::vector<int64_t>;

Counts to_counts(std::span<const int64_t> counts) { return {counts.begin(), counts.end()}; }

TEST(LoadCountersTest, TheWindowForgetsOldSteps) {
  const std::vector<int32_t> slots = {2, 0};
  LoadCounters counters(3, 2);
  counters.record(slots, Counts{1, 10});
  counters.record(slots, Counts{1, 0});  // another call of the same step
  EXPECT_EQ(to_counts(counters.window()), (Counts{10, 0, 2}));
  counters.end_step();
  counters.record(slots, Counts{4, 40});
  EXPECT_EQ(to_counts(counters.window()), (Counts{50, 0, 6}));
  counters.end_step();  // the first step leaves
  EXPECT_EQ(to_counts(counters.window()), (Counts{40, 0, 4}));
  EXPECT_EQ(to_counts(counters.total()), (Counts{50, 0, 6}));
  EXPECT_EQ(to_counts(counters.slots()), (Counts{6, 50}));
  EXPECT_EQ(counters.num_steps(), 2);
}

TEST(LoadCountersTest, EqualsTheSumOfTheLastStepsForRandomCalls) {
  SeededRng rng;
  for (const int window : {1, 2, 7}) {
    LoadCounters counters(5, window);
    std::deque<Counts> last = {Counts(5, 0)};
    for (int step = 0; step < 40; ++step) {
      for (int64_t calls = rng.integer(0, 2); calls > 0; --calls) {
        // Slots of experts that change, two of them of one expert.
        const std::vector<int32_t> slots = {static_cast<int32_t>(rng.integer(0, 4)), 3, 3};
        const Counts tokens = {rng.integer(0, 9), rng.integer(0, 9), rng.integer(0, 9)};
        counters.record(slots, tokens);
        for (size_t slot = 0; slot < 3; ++slot)
          last.back()[static_cast<size_t>(slots[slot])] += tokens[slot];
      }
      Counts sum(5, 0);
      for (const Counts& one : last)
        for (size_t e = 0; e < 5; ++e)
          sum[e] += one[e];
      ASSERT_EQ(to_counts(counters.window()), sum) << "seed " << rng.seed() << " step " << step;
      counters.end_step();
      last.emplace_back(5, 0);
      if (static_cast<int>(last.size()) > window) last.pop_front();
    }
  }
}

TEST(LoadCountersTest, RefusesSizesThatDoNotFit) {
  constexpr auto code = ErrorCode::kInvalidArgument;
  expect_error([] { LoadCounters(0, 1); }, code, {"0 experts"});
  expect_error([] { LoadCounters(3, 0); }, code, {"0 steps"});
  LoadCounters counters(3, 1);
  const std::vector<int32_t> slots = {0, 3};
  expect_error([&] { counters.record(slots, Counts{1}); }, code, {"1 slots", "2 slots"});
  expect_error([&] { counters.record(slots, Counts{1, 1}); }, code, {"slot 1", "found 3"});
}

// TP ranks of a group hold equal counts, which count once.
TEST(LoadCountersTest, RanksSumTheirCountsOnce) {
  const ParallelConfig parallel{.tp_size = 2, .ep_size = 3};
  const ExpertMap map = ExpertMap::with_redundancy(3, {2, 0, 1, 0}, 3, Placement::kRoundRobin);
  run_local_ranks(parallel.world_size(), [&](Communicator& world) {
    ParallelConfig own = parallel;
    own.rank = world.rank();
    const int64_t ep = own.ep_rank();
    EXPECT_EQ(sum_over_ep_ranks(Counts{1, ep, int64_t{1} << (40 + ep)}, own, world),
              (Counts{3, 3, int64_t{7} << 40}));
    // Round robin: rank 0 holds physical 0 and 3, rank 1 holds 1, rank 2 holds 2.
    const Counts slots = ep == 0 ? Counts{10, 13} : Counts{10 + ep};
    EXPECT_EQ(gather_physical_counts(slots, map, own, world), (Counts{10, 11, 12, 13}));
  });
}

}  // namespace
}  // namespace gantry::test
