#include "parallel/expert_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using Ids = std::vector<int32_t>;
using enum Placement;

Ids to_ids(std::span<const int32_t> ids) { return {ids.begin(), ids.end()}; }

Ids initial_eplb_map(int num_experts, int num_redundant) {
  Ids map(static_cast<size_t>(num_experts + num_redundant));
  for (size_t p = 0; p < map.size(); ++p) {
    map[p] = static_cast<int32_t>(p) % num_experts;
  }
  return map;
}

// vLLM's determine_expert_map, said differently: deal the ids one by one to find how many each rank
// holds; linear hands out that many consecutive ids, round robin the dealt ids themselves.
std::vector<Ids> golden_owners(int num_physical, int ep_size, Placement placement) {
  std::vector<Ids> dealt(static_cast<size_t>(ep_size));
  for (int p = 0; p < num_physical; ++p)
    dealt[static_cast<size_t>(p % ep_size)].push_back(p);
  if (placement == kRoundRobin) return dealt;
  int32_t next = 0;
  for (Ids& ids : dealt) {
    for (int32_t& id : ids)
      id = next++;
  }
  return dealt;
}

TEST(ExpertMapTest, GivesTheRemainderToTheFirstRanks) {
  const ExpertMap map = ExpertMap::create(8, 3, kLinear);
  EXPECT_EQ(to_ids(map.slot_to_logical(0)), (Ids{0, 1, 2}));
  EXPECT_EQ(to_ids(map.slot_to_logical(1)), (Ids{3, 4, 5}));
  EXPECT_EQ(to_ids(map.slot_to_logical(2)), (Ids{6, 7}));
  EXPECT_EQ(to_ids(map.logical_to_slot(1)), (Ids{-1, -1, -1, 0, 1, 2, -1, -1}));
}

TEST(ExpertMapTest, RoundRobinDealsIdsLikeCards) {
  const ExpertMap map = ExpertMap::create(8, 3, kRoundRobin);
  EXPECT_EQ(to_ids(map.slot_to_logical(0)), (Ids{0, 3, 6}));
  EXPECT_EQ(to_ids(map.slot_to_logical(1)), (Ids{1, 4, 7}));
  EXPECT_EQ(to_ids(map.slot_to_logical(2)), (Ids{2, 5}));
  EXPECT_EQ(to_ids(map.logical_to_slot(1)), (Ids{-1, 0, -1, -1, 1, -1, -1, 2}));
}

TEST(ExpertMapTest, RanksBeyondTheExpertsHoldNone) {
  const ExpertMap map = ExpertMap::create(2, 4, kLinear);
  EXPECT_EQ(map.num_slots(1), 1);
  EXPECT_EQ(map.num_slots(3), 0);
  EXPECT_EQ(map.computed_slots(3), (Ids{-1, -1}));
}

// What must hold for any map. Plain conditions: an assertion macro for each of millions of elements
// would take minutes.
std::string broken_property(const ExpertMap& map) {
  const int ep_size = map.ep_size();
  const auto owners = golden_owners(map.num_physical(), ep_size, map.placement());
  const Ids forward = map.physical_to_contiguous();
  const Ids backward = map.contiguous_to_physical();
  Ids computed(static_cast<size_t>(map.num_experts()), 0);
  int contiguous = 0;
  for (int rank = 0; rank < ep_size; ++rank) {
    const Ids& physical = owners[static_cast<size_t>(rank)];
    const auto slots = map.slot_to_logical(rank);
    if (map.num_slots(rank) != static_cast<int>(physical.size())) return "number of slots";
    Ids lookup(static_cast<size_t>(map.num_experts()), -1);
    for (size_t j = physical.size(); j-- > 0;) {
      const int32_t p = physical[j];
      if (map.owner(p) != rank || map.slot(p) != static_cast<int>(j)) return "owner or slot";
      if (slots[j] != map.logical(p)) return "slot_to_logical";
      lookup[static_cast<size_t>(slots[j])] = static_cast<int32_t>(j);  // the lowest comes last
    }
    const auto found = map.logical_to_slot(rank);
    if (!std::equal(found.begin(), found.end(), lookup.begin(), lookup.end())) {
      return "logical_to_slot";
    }
    for (const int32_t p : physical) {
      if (forward[static_cast<size_t>(p)] != contiguous) return "physical_to_contiguous";
      if (backward[static_cast<size_t>(contiguous++)] != p) return "contiguous_to_physical";
    }
    const Ids mine = map.computed_slots(rank);
    for (size_t e = 0; e < mine.size(); ++e) {
      if (mine[e] < 0) continue;
      if (slots[static_cast<size_t>(mine[e])] != static_cast<int>(e)) return "computed_slots";
      if (map.computing_rank(static_cast<int>(e)) != rank) return "computing_rank";
      ++computed[e];
    }
  }
  const bool once = std::all_of(computed.begin(), computed.end(), [](int n) { return n == 1; });
  return once ? "" : "each expert is computed once";
}

class ExpertMapPropertyTest : public testing::TestWithParam<Placement> {};

TEST_P(ExpertMapPropertyTest, HoldsForEveryNumberOfExpertsAndRanks) {
  // Every pair of small sizes, and a third of the large ones, in which each size still occurs.
  for (int num_experts = 1; num_experts <= 512; ++num_experts) {
    for (int ep_size = 1; ep_size <= 64; ++ep_size) {
      if (num_experts > 128 && (num_experts + ep_size) % 3 != 0) continue;
      const ExpertMap map = ExpertMap::create(num_experts, ep_size, GetParam());
      ASSERT_EQ(broken_property(map), "") << num_experts << " experts on " << ep_size << " ranks";
      ASSERT_LE(map.num_slots(0) - map.num_slots(ep_size - 1), 1);
    }
  }
}

TEST_P(ExpertMapPropertyTest, HoldsForTheInitialRedundancyOfEplb) {
  for (const int num_redundant : {1, 3, 8, 13, 40}) {  // up to five copies of an expert
    for (int ep_size = 1; ep_size <= 10; ++ep_size) {
      const ExpertMap map =
          ExpertMap::with_redundancy(8, initial_eplb_map(8, num_redundant), ep_size, GetParam());
      EXPECT_EQ(map.num_physical(), 8 + num_redundant);
      EXPECT_EQ(broken_property(map), "") << num_redundant << " copies on " << ep_size << " ranks";
    }
  }
}

TEST_P(ExpertMapPropertyTest, HoldsForRandomRedundancy) {
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  for (int i = 0; i < 300; ++i) {
    const auto num_experts = static_cast<int>(rng.integer(1, 40));
    Ids physical = initial_eplb_map(num_experts, 0);
    for (int64_t copies = rng.integer(0, 40); copies > 0; --copies) {
      physical.push_back(static_cast<int32_t>(rng.integer(0, num_experts - 1)));
    }
    std::shuffle(physical.begin(), physical.end(), rng.engine());
    const auto ep_size = static_cast<int>(rng.integer(1, 12));
    const ExpertMap map = ExpertMap::with_redundancy(num_experts, physical, ep_size, GetParam());
    ASSERT_EQ(broken_property(map), "");
    for (int e = 0; e < num_experts; ++e) {
      Ids expected;
      for (size_t p = 0; p < physical.size(); ++p) {
        if (physical[p] == e) expected.push_back(static_cast<int32_t>(p));
      }
      ASSERT_EQ(to_ids(map.replicas(e)), expected);
      size_t on_ranks = 0;
      for (int rank = 0; rank < ep_size; ++rank) {
        const Ids slots = map.slots_of(rank, e);
        ASSERT_TRUE(std::is_sorted(slots.begin(), slots.end()));
        for (const int32_t slot : slots) {
          ASSERT_EQ(map.slot_to_logical(rank)[static_cast<size_t>(slot)], e);
        }
        on_ranks += slots.size();
      }
      ASSERT_EQ(on_ranks, expected.size());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Placements, ExpertMapPropertyTest, testing::Values(kLinear, kRoundRobin),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

TEST(ExpertMapRedundancyTest, TheRankOfTheFirstCopyComputes) {
  // Physical 0..5 hold 0 1 2 3 0 1: rank 0 has 0 1 2, rank 1 has 3 0 1.
  const ExpertMap map = ExpertMap::with_redundancy(4, {0, 1, 2, 3, 0, 1}, 2, kLinear);
  EXPECT_EQ(to_ids(map.logical_to_slot(1)), (Ids{1, 2, -1, 0}));
  EXPECT_EQ(map.computed_slots(0), (Ids{0, 1, 2, -1}));
  EXPECT_EQ(map.computed_slots(1), (Ids{-1, -1, -1, 0}));
  EXPECT_EQ(map.computing_rank(0), 0);
  EXPECT_EQ(to_ids(map.replicas(1)), (Ids{1, 5}));
}

TEST(ExpertMapRedundancyTest, TwoCopiesOnOneRankHaveTwoSlots) {
  const ExpertMap map = ExpertMap::with_redundancy(2, {1, 0, 1}, 1, kLinear);
  EXPECT_EQ(map.slots_of(0, 1), (Ids{0, 2}));
  EXPECT_EQ(to_ids(map.logical_to_slot(0)), (Ids{1, 0}));
}

TEST(ExpertMapEqualityTest, ComparesByValue) {
  EXPECT_EQ(ExpertMap::create(6, 2, kLinear), ExpertMap::create(6, 2, kLinear));
  EXPECT_FALSE(ExpertMap::create(6, 2, kLinear) == ExpertMap::create(6, 2, kRoundRobin));
}

TEST(ExpertMapErrorTest, RefusesSizesAndMapsThatMakeNoSense) {
  const auto code = ErrorCode::kInvalidArgument;
  expect_error([] { ExpertMap::create(0, 2, kLinear); }, code, {"expert"});
  expect_error([] { ExpertMap::create(-5, 2, kLinear); }, code, {"-5"});
  expect_error([] { ExpertMap::create(4, 0, kLinear); }, code, {"rank"});
  expect_error(
      [] {
        ExpertMap::with_redundancy(3, {0, 1, 3}, 1, kLinear);
      },
      code, {"physical expert 2", "found 3"});
  expect_error([] { ExpertMap::with_redundancy(3, {0, -1, 2}, 1, kLinear); }, code, {"found -1"});
  expect_error(
      [] {
        ExpertMap::with_redundancy(3, {0, 2, 2}, 1, kLinear);
      },
      code, {"logical expert 1", "no copy"});
}

TEST(ExpertMapErrorTest, RefusesRanksAndExpertsThatAreNotThere) {
  const ExpertMap map = ExpertMap::create(4, 2, kLinear);
  const auto code = ErrorCode::kInvalidArgument;
  expect_error([&] { (void)map.num_slots(2); }, code, {"EP rank", "found 2"});
  expect_error([&] { (void)map.logical_to_slot(-1); }, code, {"EP rank", "found -1"});
  expect_error([&] { (void)map.replicas(4); }, code, {"expert", "found 4"});
  expect_error([&] { (void)map.computing_rank(-1); }, code, {"expert", "found -1"});
  expect_error([&] { (void)map.owner(4); }, code, {"physical expert", "found 4"});
  expect_error([&] { (void)map.slot(-1); }, code, {"physical expert", "found -1"});
  expect_error([&] { (void)map.logical(4); }, code, {"physical expert", "found 4"});
}

TEST(ExpertMapDescribeTest, WritesRangesStepsAndEmptyRanks) {
  EXPECT_EQ(ExpertMap::create(7, 2, kLinear).describe(), "rank 0: 0-3; rank 1: 4-6");
  EXPECT_EQ(ExpertMap::create(7, 2, kRoundRobin).describe(), "rank 0: 0-6 by 2; rank 1: 1-5 by 2");
  EXPECT_EQ(ExpertMap::create(1, 2, kLinear).describe(), "rank 0: 0; rank 1: none");
  EXPECT_EQ(ExpertMap::with_redundancy(3, {0, 1, 2, 0}, 1, kLinear).describe(), "rank 0: 0-2, 0");
}

TEST(ExpertMapTest, TakesAnySlotsOfAnyRank) {
  const ExpertMap map = ExpertMap::from_slots(3, {{}, {2, 0, 2}, {1}});
  EXPECT_EQ(map.ep_size(), 3);
  EXPECT_EQ(map.num_slots(0), 0);
  EXPECT_EQ(to_ids(map.slot_to_logical(1)), (Ids{2, 0, 2}));
  EXPECT_EQ(to_ids(map.physical_to_logical()), (Ids{2, 0, 2, 1}));
  EXPECT_EQ(map.owner(3), 2);
  EXPECT_EQ(map.slot(2), 2);
  EXPECT_EQ(to_ids(map.replicas(2)), (Ids{0, 2}));
  EXPECT_EQ(map.physical_to_contiguous(), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(map.computed_slots(1), (Ids{1, -1, 0}));
}

TEST(ExpertMapTest, GainsAndLosesRanksWithoutSlots) {
  const ExpertMap two = ExpertMap::create(4, 2, kLinear);
  const ExpertMap four = two.with_ep_size(4);
  EXPECT_EQ(four.num_slots(1), 2);
  EXPECT_EQ(four.num_slots(3), 0);
  EXPECT_EQ(four.with_ep_size(2), two);
  expect_error([&] { static_cast<void>(two.with_ep_size(1)); }, ErrorCode::kInvalidArgument,
               {"rank 1", "2 expert(s)"});
}

TEST(ExpertMapTest, RefusesSlotsThatLackAnExpert) {
  expect_error(
      [] {
        ExpertMap::from_slots(3, {{0}, {2}});
      },
      ErrorCode::kInvalidArgument, {"logical expert 1 has no copy"});
  expect_error([] { ExpertMap::from_slots(2, {}); }, ErrorCode::kInvalidArgument, {"1 rank"});
}

}  // namespace
}  // namespace gantry::test
