#include "parallel/startup_agreement.h"

#include <gtest/gtest.h>

#include "tests/parallel/rank_groups.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

class StartupAgreementTest : public testing::TestWithParam<int> {
 protected:
  const int num_ranks = GetParam();
};

TEST_P(StartupAgreementTest, IsOneOperationWhereAllAreAlike) {
  run_ranks(num_ranks, [](Communicator& world) {
    check_agreement(world, std::vector<AgreementItem>{{"placement", "linear"}, {"tp", "2"}});
    EXPECT_EQ(world.traffic().operations, 1);
    EXPECT_EQ(world.traffic().bytes_sent, 16 * (world.size() - 1));
  });
}

TEST_P(StartupAgreementTest, NamesWhatDiffersAndOnWhichRanks) {
  if (num_ranks == 1) GTEST_SKIP() << "one rank agrees with itself";
  run_ranks(num_ranks, [&](Communicator& world) {
    const bool last = world.rank() == world.size() - 1;
    const std::vector<AgreementItem> items = {{"same", "yes"},
                                              {"activations", last ? "bf16" : "f32"}};
    std::string others = "0";
    for (int rank = 1; rank < num_ranks - 1; ++rank)
      others += ", " + std::to_string(rank);
    const std::string expected = "activations: rank(s) " + others + ": f32; rank(s) " +
                                 std::to_string(num_ranks - 1) + ": bf16";
    try {
      check_agreement(world, items);
      ADD_FAILURE() << "rank " << world.rank() << " agreed";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find("same"), std::string::npos) << error.what();
    }
  });
}

TEST_P(StartupAgreementTest, AnItemThatOneRankLacksDiffers) {
  if (num_ranks == 1) GTEST_SKIP() << "one rank agrees with itself";
  run_ranks(num_ranks, [](Communicator& world) {
    std::vector<AgreementItem> items = {{"a", "1"}};
    if (world.rank() == 0) items.push_back({"b", "2"});
    expect_error([&] { check_agreement(world, items); }, ErrorCode::kInvalidArgument,
                 {"b: rank(s) 0: 2", "(nothing)"});
  });
}

TEST_P(StartupAgreementTest, NameAndValueAreKeptApart) {
  if (num_ranks == 1) GTEST_SKIP() << "one rank agrees with itself";
  run_ranks(num_ranks, [](Communicator& world) {
    const bool first = world.rank() == 0;
    const std::vector<AgreementItem> items = {{first ? "ab" : "a", first ? "c" : "bc"}};
    expect_error([&] { check_agreement(world, items); }, ErrorCode::kInvalidArgument, {});
  });
}

TEST_P(StartupAgreementTest, GathersTextsOfAnyLength) {
  run_ranks(num_ranks, [](Communicator& world) {
    const auto text_of = [](int rank) {
      return std::string(static_cast<size_t>(rank) * 1000, static_cast<char>('a' + rank));
    };
    const auto texts = gather_texts(world, text_of(world.rank()));
    ASSERT_EQ(texts.size(), static_cast<size_t>(world.size()));
    for (int rank = 0; rank < world.size(); ++rank)
      EXPECT_EQ(texts[static_cast<size_t>(rank)], text_of(rank));
  });
}

INSTANTIATE_TEST_SUITE_P(GroupSizes, StartupAgreementTest, testing::ValuesIn(group_sizes()));

}  // namespace
}  // namespace gantry::test
