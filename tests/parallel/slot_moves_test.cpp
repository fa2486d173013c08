#include "parallel/slot_moves.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <utility>

#include "parallel/replica_table.h"
#include "tests/support/expect_error.h"
#include "tests/support/random_maps.h"

namespace gantry::test {
namespace {

using Slots = std::map<std::pair<int, int>, int>;  // (rank, slot) -> expert

Slots slots_of(const ExpertMap& map) {
  Slots slots;
  for (int rank = 0; rank < map.ep_size(); ++rank) {
    for (int slot = 0; slot < map.num_slots(rank); ++slot)
      slots[{rank, slot}] = map.slot_to_logical(rank)[static_cast<size_t>(slot)];
  }
  return slots;
}

// Carries the plan out on slots that hold nothing but their expert's id.
Slots carried_out(const MovePlan& plan, const Slots& before) {
  Slots after;
  const auto put = [&after](const SlotMove& move, int expert) {
    EXPECT_EQ(expert, move.expert);
    const bool is_new = after.emplace(std::pair(move.to_rank, move.to_slot), expert).second;
    EXPECT_TRUE(is_new) << "rank " << move.to_rank << " slot " << move.to_slot << " twice";
  };
  for (const SlotMove& move : plan.copies) {
    EXPECT_EQ(move.from_rank, move.to_rank);
    put(move, before.at({move.from_rank, move.from_slot}));
  }
  for (const auto& round : plan.rounds) {
    std::set<int> senders;
    std::set<int> receivers;
    for (const SlotMove& move : round) {
      EXPECT_NE(move.from_rank, move.to_rank);
      EXPECT_TRUE(senders.insert(move.from_rank).second);
      EXPECT_TRUE(receivers.insert(move.to_rank).second);
      put(move, before.at({move.from_rank, move.from_slot}));
    }
  }
  for (const SlotMove& move : plan.duplicates) {
    EXPECT_EQ(move.from_rank, move.to_rank);
    put(move, after.at({move.from_rank, move.from_slot}));
  }
  return after;
}

// Experts that a rank holds afterwards and did not hold before: what must cross at least.
int64_t least_received(const ExpertMap& from, const ExpertMap& to) {
  int64_t count = 0;
  for (int rank = 0; rank < from.ep_size(); ++rank) {
    for (size_t e = 0; e < static_cast<size_t>(from.num_experts()); ++e)
      count += to.logical_to_slot(rank)[e] >= 0 && from.logical_to_slot(rank)[e] < 0 ? 1 : 0;
  }
  return count;
}

TEST(SlotMovesTest, FillEverySlotOfTheNewMapWithTheLeastTraffic) {
  SeededRng rng;
  for (int trial = 0; trial < 300; ++trial) {
    const int num_experts = static_cast<int>(rng.integer(1, 24));
    const int ep_size = static_cast<int>(rng.integer(1, 6));
    const ExpertMap from = random_map(num_experts, ep_size, rng);
    const ExpertMap to = random_map(num_experts, ep_size, rng);
    const MovePlan plan = plan_moves(from, to);
    EXPECT_EQ(carried_out(plan, slots_of(from)), slots_of(to))
        << "seed " << rng.seed() << " trial " << trial;
    EXPECT_EQ(plan.num_received(), least_received(from, to));
  }
}

TEST(SlotMovesTest, TheSameMapMovesNothingBetweenRanks) {
  const ExpertMap map = ExpertMap::with_redundancy(4, {0, 1, 2, 3, 0, 2}, 3, Placement::kLinear);
  const MovePlan plan = plan_moves(map, map);
  EXPECT_TRUE(plan.rounds.empty());
  EXPECT_TRUE(plan.duplicates.empty());
  ASSERT_EQ(plan.copies.size(), 6U);
  for (const SlotMove& move : plan.copies)
    EXPECT_EQ(move.from_slot, move.to_slot);
}

// Holders 0 and 1 of expert 0, which ranks 2, 3 and 4 need: 1.5 each, the first one more.
TEST(SlotMovesTest, HoldersShareTheSending) {
  const ExpertMap from = ExpertMap::from_slots(1, {{0}, {0}, {}, {}, {}});
  const ExpertMap to = ExpertMap::from_slots(1, {{}, {}, {0}, {0}, {0}});
  std::map<int, int> receiver_to_sender;
  for (const auto& round : plan_moves(from, to).rounds) {
    for (const SlotMove& move : round)
      receiver_to_sender[move.to_rank] = move.from_rank;
  }
  EXPECT_EQ(receiver_to_sender, (std::map<int, int>{{2, 0}, {3, 1}, {4, 0}}));
}

TEST(SlotMovesTest, RefusesMapsOfOtherExpertsOrRanks) {
  const ExpertMap map = ExpertMap::create(4, 2, Placement::kLinear);
  for (const ExpertMap& other :
       {ExpertMap::create(5, 2, Placement::kLinear), ExpertMap::create(4, 3, Placement::kLinear)}) {
    expect_error([&] { plan_moves(map, other); }, ErrorCode::kInvalidArgument, {"4 experts"});
  }
}

TEST(ReplicaTableTest, SpreadsTokensOverCopiesAndKeepsMissingIds) {
  const ExpertMap map = ExpertMap::with_redundancy(2, {0, 1, 1, 1}, 2, Placement::kLinear);
  const ReplicaTable table(map);
  std::vector<int32_t> ids;
  for (int token = 0; token < 3000; ++token)
    ids.insert(ids.end(), {1, token % 2 == 0 ? 0 : -1});
  std::vector<int32_t> physical(ids.size());
  table.choose(ids, 2, 0, physical);
  std::map<int, int> tokens;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0) {
      EXPECT_EQ(physical[i], -1);
    } else {
      EXPECT_EQ(map.logical(physical[i]), ids[i]);
      ++tokens[physical[i]];
    }
  }
  EXPECT_EQ(tokens[0], 1500);
  for (const int copy : {1, 2, 3})
    EXPECT_NEAR(tokens[copy], 1000, 100) << copy;
}

// vLLM's formula with d = 0, worked out by hand: token 1 hashes to 2654435769 = 3 * 884811923.
TEST(ReplicaTableTest, ChoosesByTheDocumentedFormula) {
  const ReplicaTable table(ExpertMap::with_redundancy(1, {0, 0, 0, 0, 0}, 1, Placement::kLinear));
  const std::vector<int32_t> ids(4, 0);
  std::vector<int32_t> physical(4);
  table.choose(ids, 1, 0, physical);
  // (t * 2654435769 mod 2^32) mod 5: 0; 2654435769; 1013904242; 3668340011.
  EXPECT_EQ(physical, (std::vector<int32_t>{0, 4, 2, 1}));
  table.choose(ids, 1, 1, physical);
  EXPECT_EQ(physical[0], 4) << "another token group begins elsewhere";
}

TEST(ReplicaTableTest, RefusesIdsOfNoExpert) {
  const ReplicaTable table(ExpertMap::create(3, 1, Placement::kLinear));
  std::vector<int32_t> physical(1);
  for (const int32_t id : {3, -2}) {
    const std::vector<int32_t> ids = {id};
    expect_error([&] { table.choose(ids, 1, 0, physical); }, ErrorCode::kInvalidArgument,
                 {"token 0", std::to_string(id)});
  }
}

}  // namespace
}  // namespace gantry::test
