#include "parallel/eplb.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using Ids = std::vector<int32_t>;
using Loads = std::vector<int64_t>;

ExpertMap map_of(const EplbPlan& plan, size_t num_experts, int num_ranks) {
  return ExpertMap::with_redundancy(static_cast<int>(num_experts), plan.physical_to_logical,
                                    num_ranks, Placement::kLinear);
}

// Placements that DeepSeek's own code printed, its README's example among them
// (tools/dump_eplb.py).
TEST(EplbTest, GivesThePlacementsOfDeepSeeksCode) {
  std::ifstream file(golden_root() / "eplb" / "placements.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  ASSERT_GE(golden.at("cases").size(), 20U);
  for (const auto& item : golden.at("cases")) {
    const auto load = item.at("load").get<Loads>();
    const EplbPlan plan = balance_experts(load, {.num_physical = item.at("num_physical"),
                                                 .num_ranks = item.at("num_ranks"),
                                                 .num_groups = item.at("num_groups"),
                                                 .num_nodes = item.at("num_nodes")});
    EXPECT_EQ(plan.physical_to_logical, item.at("physical_to_logical").get<Ids>()) << item.dump();
  }
}

TEST(EplbTest, KeepsTheGroupsOfANodeTogether) {
  const Loads load = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
  const EplbPlan plan =
      balance_experts(load, {.num_physical = 16, .num_ranks = 8, .num_groups = 4, .num_nodes = 2});
  EXPECT_EQ(plan.policy, EplbPolicy::kHierarchical);
  for (size_t p = 0; p < 16; ++p) {
    const int group = plan.physical_to_logical[p] / 3;
    EXPECT_EQ(p < 8, group == 1 || group == 2) << "physical expert " << p;
  }
}

TEST(EplbTest, SaysWhyItIsGlobal) {
  const Loads load(12, 1);
  const auto reason = [&](const EplbShape& shape) {
    const EplbPlan plan = balance_experts(load, shape);
    EXPECT_EQ(plan.policy, EplbPolicy::kGlobal);
    return plan.reason;
  };
  EXPECT_EQ(reason({.num_physical = 16, .num_ranks = 8, .num_groups = 3, .num_nodes = 2}),
            "3 group(s) do not divide over 2 nodes");
  EXPECT_EQ(reason({.num_physical = 16, .num_ranks = 8, .num_groups = 5}),
            "12 experts do not divide over 5 groups");
  EXPECT_EQ(reason({.num_physical = 15, .num_ranks = 3, .num_groups = 2, .num_nodes = 2}),
            "3 ranks do not divide over 2 nodes");
  EXPECT_EQ(reason({.num_physical = 13, .num_ranks = 4}),
            "13 physical experts do not divide over 4 ranks");
}

// Equal loads: every order is by id, so every rank finds the same placement.
TEST(EplbTest, BreaksTiesByTheLowestId) {
  const EplbPlan plan = balance_experts(Loads(4, 7), {.num_physical = 6, .num_ranks = 2});
  // Copies of 0 and 1; packed heaviest first: 2 and 3 (7 each), then the halves of 0 and 1.
  EXPECT_EQ(plan.physical_to_logical, (Ids{2, 0, 0, 3, 1, 1}));
  EXPECT_EQ(balance_experts(Loads(4, 0), {.num_physical = 4, .num_ranks = 2}).physical_to_logical,
            (Ids{0, 1, 2, 3}));
}

TEST(EplbTest, GivesTheFirstRanksOneMoreOfAnUnevenNumber) {
  const Loads load = {10, 20, 30, 40, 50};
  const EplbPlan plan = balance_experts(load, {.num_physical = 7, .num_ranks = 3});
  const ExpertMap map = map_of(plan, load.size(), 3);
  EXPECT_EQ(map.num_slots(0), 3);
  EXPECT_EQ(map.num_slots(1), 2);
  EXPECT_EQ(map.num_slots(2), 2);
}

// Of one rank: the heaviest copy, plus the mean of all others, bounds what greedy packing leaves
// behind while it has room; and replication never makes the heaviest copy heavier.
TEST(EplbTest, HoldsItsPropertiesForRandomLoads) {
  SeededRng rng;
  for (int trial = 0; trial < 300; ++trial) {
    const int num_experts = static_cast<int>(rng.integer(1, 96));
    const int num_ranks = static_cast<int>(rng.integer(1, 16));
    const int redundant = static_cast<int>(rng.integer(0, num_experts));
    const EplbShape shape{.num_physical = num_experts + redundant,
                          .num_ranks = num_ranks,
                          .num_groups = static_cast<int>(rng.integer(1, 8)),
                          .num_nodes = static_cast<int>(rng.integer(1, num_ranks))};
    Loads load(static_cast<size_t>(num_experts));
    for (int64_t& tokens : load)
      tokens = rng.integer(0, trial % 3 == 0 ? 3 : 100000);
    const EplbPlan plan = balance_experts(load, shape);
    EXPECT_EQ(balance_experts(load, shape).physical_to_logical, plan.physical_to_logical);
    ASSERT_EQ(plan.physical_to_logical.size(), static_cast<size_t>(shape.num_physical));
    // Throws unless every expert has a copy.
    const ExpertMap map = map_of(plan, load.size(), num_ranks);
    const std::vector<double> ranks = expected_rank_loads(map, load);
    const double total = std::accumulate(load.begin(), load.end(), 0.0);
    EXPECT_NEAR(std::accumulate(ranks.begin(), ranks.end(), 0.0), total, 1e-9 * (total + 1));
    const double balance = balancedness(ranks);
    EXPECT_GE(balance, 1.0 / num_ranks - 1e-12) << "seed " << rng.seed() << " trial " << trial;
    EXPECT_LE(balance, 1.0 + 1e-12);
    double heaviest_copy = 0.0;
    for (int e = 0; e < num_experts; ++e) {
      heaviest_copy = std::max(heaviest_copy, static_cast<double>(load[static_cast<size_t>(e)]) /
                                                  static_cast<double>(map.replicas(e).size()));
    }
    EXPECT_LE(heaviest_copy, static_cast<double>(*std::max_element(load.begin(), load.end())));
  }
}

TEST(EplbTest, BalancesASkewedLayerBetterThanLinear) {
  Loads load(64, 10);
  load[3] = 1000;
  load[4] = 900;
  const ExpertMap linear = ExpertMap::create(64, 8, Placement::kLinear);
  const EplbPlan plan = balance_experts(load, {.num_physical = 80, .num_ranks = 8});
  const double before = balancedness(expected_rank_loads(linear, load));
  const double after = balancedness(expected_rank_loads(map_of(plan, 64, 8), load));
  EXPECT_LT(before, 0.17);  // (62 * 10 + 1900) / 8 / (6 * 10 + 1900) = 0.161
  // 18 copies of the two hot experts, at most 1000 / 9 each and at most 3 on a rank of 10 slots:
  // 2520 / 8 / (3 * 111.2 + 7 * 10) = 0.78.
  EXPECT_GT(after, 0.78);
}

TEST(EplbTest, RefusesWhatCannotBe) {
  constexpr auto code = ErrorCode::kInvalidArgument;
  expect_error([] { balance_experts(Loads(4, 1), {.num_physical = 3}); }, code,
               {"at least 4", "found 3"});
  expect_error(
      [] {
        balance_experts(Loads{1, -2}, {.num_physical = 2});
      },
      code, {"expert 1", "-2"});
  expect_error([] { balance_experts(Loads(2, 1), {.num_physical = 2, .num_nodes = 2}); }, code,
               {"nodes"});
  expect_error([] { balance_experts(Loads{}, {}); }, code, {"0 experts"});
  const std::vector<double> weights(3, 1.0);
  const std::vector<int> capacity = {1, 1};
  expect_error([&] { balanced_packing(weights, capacity); }, code, {"3 items", "2 places"});
}

TEST(EplbTest, KeepsStayingExpertsInTheirSlots) {
  const ExpertMap before = ExpertMap::from_slots(5, {{0, 1, 2}, {3, 4}});
  const ExpertMap planned = ExpertMap::from_slots(5, {{2, 4, 0}, {1, 3, 2}});
  const ExpertMap kept = keep_slots(before, planned);
  const auto ids = [&](int rank) {
    const auto slots = kept.slot_to_logical(rank);
    return Ids(slots.begin(), slots.end());
  };
  EXPECT_EQ(ids(0), (Ids{0, 4, 2}));
  EXPECT_EQ(ids(1), (Ids{3, 1, 2}));
}

TEST(EplbTest, MeasuresBalance) {
  EXPECT_DOUBLE_EQ(balancedness(std::vector<double>{4, 4}), 1.0);
  EXPECT_DOUBLE_EQ(balancedness(std::vector<double>{8, 0}), 0.5);
  EXPECT_DOUBLE_EQ(balancedness(std::vector<double>{0, 0}), 1.0);
  EXPECT_DOUBLE_EQ(balancedness({}), 1.0);
  const ExpertMap map = ExpertMap::from_slots(2, {{0, 1}, {0}});
  EXPECT_EQ(expected_rank_loads(map, Loads{10, 3}), (std::vector<double>{8, 5}));
}

}  // namespace
}  // namespace gantry::test
