#include "parallel/parallel_config.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <utility>
#include <vector>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

TEST(ParallelConfigTest, ARankIsItsEpRankTimesTpPlusItsTpRank) {
  const ParallelConfig config = {.tp_size = 3, .ep_size = 4, .dp_size = 2, .rank = 7};
  EXPECT_EQ(config.world_size(), 12);
  EXPECT_EQ(config.tp_rank(), 1);
  EXPECT_EQ(config.ep_rank(), 2);
  EXPECT_EQ(config.ep_ranks_per_dp_group(), 2);
  EXPECT_EQ(config.dp_rank(), 1);
  EXPECT_TRUE(config.leads_dp_group());
}

TEST(ParallelConfigTest, EveryPairOfTpAndEpRankOccursOnce) {
  std::set<std::pair<int, int>> seen;
  ParallelConfig config = {.tp_size = 4, .ep_size = 3};
  for (config.rank = 0; config.rank < config.world_size(); ++config.rank) {
    EXPECT_LT(config.tp_rank(), 4);
    EXPECT_LT(config.ep_rank(), 3);
    EXPECT_EQ(config.ep_rank() * 4 + config.tp_rank(), config.rank);
    seen.emplace(config.tp_rank(), config.ep_rank());
  }
  EXPECT_EQ(seen.size(), 12U);
}

TEST(ParallelConfigTest, EveryTokenGroupHasOneLeadingEpRank) {
  std::vector<int> leaders(3);
  std::vector<int> members(3);
  ParallelConfig config = {.tp_size = 1, .ep_size = 6, .dp_size = 3};
  for (config.rank = 0; config.rank < 6; ++config.rank) {
    const auto group = static_cast<size_t>(config.dp_rank());
    ++members.at(group);
    leaders.at(group) += config.leads_dp_group() ? 1 : 0;
  }
  EXPECT_EQ(leaders, (std::vector<int>{1, 1, 1}));
  EXPECT_EQ(members, (std::vector<int>{2, 2, 2}));
}

TEST(ParallelConfigTest, TheDefaultIsOneRank) {
  EXPECT_NO_THROW(validate(ParallelConfig{}));
  EXPECT_EQ(ParallelConfig{}.world_size(), 1);
  EXPECT_TRUE(ParallelConfig{}.leads_dp_group());
}

TEST(ParallelConfigTest, DescribesItself) {
  EXPECT_EQ(describe({.tp_size = 2, .ep_size = 3, .dp_size = 1, .rank = 4}),
            "tp 2 x ep 3 (dp 1), rank 4: tp_rank 0, ep_rank 2");
}

TEST(ParallelConfigValidateTest, NamesTheSizeThatDoesNotFit) {
  const auto refused = [](const ParallelConfig& config, std::string_view field) {
    expect_error([&] { validate(config); }, ErrorCode::kInvalidArgument, {field});
  };
  refused({.tp_size = 0}, "tp_size");
  refused({.tp_size = -1}, "tp_size");
  refused({.ep_size = 0}, "ep_size");
  refused({.dp_size = 0}, "dp_size");
  refused({.ep_size = std::numeric_limits<int>::max()}, "ep_size");
  refused({.tp_size = 65536, .ep_size = 65536}, "ranks");  // the product does not fit in an int
  refused({.ep_size = 4, .dp_size = 3}, "dp_size 3");
  refused({.ep_size = 2, .dp_size = 4}, "dp_size 4");
  refused({.tp_size = 2, .ep_size = 2, .rank = 4}, "rank");
  refused({.rank = -1}, "rank");
}

TEST(PlacementTest, NamesAndValuesAreTheSame) {
  EXPECT_EQ(parse_placement(to_string(Placement::kLinear)), Placement::kLinear);
  EXPECT_EQ(parse_placement(to_string(Placement::kRoundRobin)), Placement::kRoundRobin);
}

TEST(PlacementTest, RefusesAnotherName) {
  for (const std::string_view name : {"", "Linear", "random", "round-robin"}) {
    expect_error([&] { (void)parse_placement(name); }, ErrorCode::kInvalidArgument,
                 {"placement", name});
  }
}

TEST(SplitEvenlyTest, TheFirstPartsTakeTheRemainder) {
  EXPECT_EQ(split_evenly(10, 4, 0).size(), 3);
  EXPECT_EQ(split_evenly(10, 4, 1).size(), 3);
  EXPECT_EQ(split_evenly(10, 4, 2).size(), 2);
  EXPECT_EQ(split_evenly(10, 4, 3).size(), 2);
  EXPECT_EQ(split_evenly(10, 4, 3).end, 10);
}

TEST(SplitEvenlyTest, PartsFollowOneAnotherAndDifferByAtMostOne) {
  for (long total = 0; total <= 130; ++total) {
    for (int parts = 1; parts <= 65; ++parts) {
      long begin = 0;
      for (int index = 0; index < parts; ++index) {
        const Slice part = split_evenly(total, parts, index);
        ASSERT_EQ(part.begin, begin) << total << " in " << parts << ", part " << index;
        // Dealt one by one, part `index` gets the items index, index + parts, ...
        long dealt = 0;
        for (long item = index; item < total; item += parts)
          ++dealt;
        ASSERT_EQ(part.size(), dealt) << total << " in " << parts << ", part " << index;
        begin = part.end;
      }
      ASSERT_EQ(begin, total);
    }
  }
}

TEST(SplitEvenlyTest, HoldsForTotalsBeyondAnInt) {
  const long total = (1L << 40) + 1;
  EXPECT_EQ(split_evenly(total, 2, 0).size(), (1L << 39) + 1);
  EXPECT_EQ(split_evenly(total, 2, 1).end, total);
}

TEST(SplitInUnitsTest, PartsAreWholeUnitsButForTheEnd) {
  EXPECT_EQ(split_in_units(128, 16, 3, 0).end, 48);
  EXPECT_EQ(split_in_units(128, 16, 3, 2).begin, 96);
  for (long total = 0; total <= 70; ++total) {
    for (const long unit : {1L, 8L, 16L}) {
      for (int parts = 1; parts <= 9; ++parts) {
        long begin = 0;
        for (int index = 0; index < parts; ++index) {
          const Slice part = split_in_units(total, unit, parts, index);
          ASSERT_EQ(part.begin, begin) << total << " by " << unit << ", part " << index;
          ASSERT_TRUE(part.end % unit == 0 || part.end == total);
          ASSERT_GE(part.size(), 0);
          if (unit == 1) {
            ASSERT_EQ(part.end, split_evenly(total, parts, index).end);
          }
          begin = part.end;
        }
        ASSERT_EQ(begin, total);
      }
    }
  }
  expect_error([] { (void)split_in_units(4, 0, 2, 0); }, ErrorCode::kInvalidArgument,
               {"units of 0"});
}

TEST(SplitEvenlyTest, RefusesPartsThatDoNotExist) {
  const auto code = ErrorCode::kInvalidArgument;
  expect_error([] { (void)split_evenly(-1, 2, 0); }, code, {"split_evenly"});
  expect_error([] { (void)split_evenly(4, 0, 0); }, code, {"split_evenly"});
  expect_error([] { (void)split_evenly(4, 2, 2); }, code, {"part 2 of 2"});
  expect_error([] { (void)split_evenly(4, 2, -1); }, code, {"part -1 of 2"});
}

}  // namespace
}  // namespace gantry::test
