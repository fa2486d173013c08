#include "kernels/permute/token_permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using Ids = std::vector<int32_t>;

Ids identity_slots(int32_t num_experts) {
  Ids slots(static_cast<size_t>(num_experts));
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}

TokenPermutation permute(const Ids& topk_ids, int64_t top_k, const Ids& expert_to_slot,
                         int64_t num_slots) {
  TokenPermutation permutation;
  permute_tokens(topk_ids, static_cast<int64_t>(topk_ids.size()) / top_k, top_k, expert_to_slot,
                 num_slots, permutation);
  return permutation;
}

TEST(TokenPermutationTest, SortsAWorkedExample) {
  // Three tokens of two choices; expert 1 lives elsewhere, experts 0 and 2 swap their slots.
  const TokenPermutation p = permute({2, 0, 1, 2, 0, -1}, 2, {1, -1, 0}, 2);
  EXPECT_EQ(p.expert_offsets, (Ids{0, 2, 4}));
  EXPECT_EQ(p.row_token, (Ids{0, 1, 0, 2}));
  EXPECT_EQ(p.row_choice, (Ids{0, 3, 1, 4}));
}

TEST(TokenPermutationTest, TakesNoTokens) {
  const TokenPermutation p = permute({}, 4, identity_slots(3), 3);
  EXPECT_EQ(p.num_rows(), 0);
  EXPECT_EQ(p.expert_offsets, Ids(4, 0));
}

TEST(TokenPermutationTest, TakesARankWithoutExperts) {
  const TokenPermutation p = permute({0, 1}, 1, {-1, -1}, 0);
  EXPECT_EQ(p.num_rows(), 0);
  EXPECT_EQ(p.expert_offsets, Ids{0});
}

TEST(TokenPermutationTest, AllMinusOneGivesNoRows) {
  EXPECT_EQ(permute(Ids(12, -1), 3, identity_slots(2), 2).num_rows(), 0);
}

TEST(TokenPermutationTest, AllOnOneExpertKeepTheirOrder) {
  const TokenPermutation p = permute(Ids(9, 4), 1, identity_slots(5), 5);
  EXPECT_EQ(p.expert_offsets, (Ids{0, 0, 0, 0, 0, 9}));
  EXPECT_EQ(p.row_token, identity_slots(9));
}

TEST(TokenPermutationTest, AnExpertNamedTwiceGetsTwoRows) {
  const TokenPermutation p = permute({1, 1}, 2, identity_slots(2), 2);
  EXPECT_EQ(p.row_token, (Ids{0, 0}));
  EXPECT_EQ(p.row_choice, (Ids{0, 1}));
}

TEST(TokenPermutationTest, ForgetsTheBatchBefore) {
  TokenPermutation p;
  permute_tokens(Ids(40, 1), 20, 2, identity_slots(6), 6, p);
  permute_tokens(Ids{2}, 1, 1, identity_slots(3), 3, p);
  EXPECT_EQ(p.expert_offsets, (Ids{0, 0, 0, 1}));
  EXPECT_EQ(p.row_token, Ids{0});
}

// Random batches with experts of other ranks, absent choices and duplicates.
class TokenPermutationPropertyTest : public testing::TestWithParam<int> {
 protected:
  static constexpr int64_t kExperts = 23;
  static constexpr int64_t kTopK = 4;

  TokenPermutationPropertyTest() : rng(static_cast<uint64_t>(GetParam())) {
    num_tokens = rng.integer(1, 200);
    for (int64_t i = 0; i < num_tokens * kTopK; ++i) {
      topk_ids.push_back(static_cast<int32_t>(rng.integer(-1, kExperts - 1)));
    }
    for (int64_t e = 0; e < kExperts; ++e) {
      expert_to_slot.push_back(rng.integer(0, 2) == 0 ? -1 : num_slots++);
    }
    std::shuffle(expert_to_slot.begin(), expert_to_slot.end(), rng.engine());
    permute_tokens(topk_ids, num_tokens, kTopK, expert_to_slot, num_slots, permutation);
  }

  int32_t slot_of_choice(int32_t choice) const {
    const int32_t id = topk_ids[static_cast<size_t>(choice)];
    return id < 0 ? -1 : expert_to_slot[static_cast<size_t>(id)];
  }

  SeededRng rng;
  int64_t num_tokens = 0;
  int32_t num_slots = 0;
  Ids topk_ids;
  Ids expert_to_slot;
  TokenPermutation permutation;
};

TEST_P(TokenPermutationPropertyTest, EveryLocalChoiceHasExactlyOneRow) {
  Ids local;
  for (int32_t choice = 0; choice < num_tokens * kTopK; ++choice) {
    if (slot_of_choice(choice) >= 0) local.push_back(choice);
  }
  Ids rows = permutation.row_choice;
  std::sort(rows.begin(), rows.end());
  EXPECT_EQ(rows, local);
  EXPECT_EQ(permutation.expert_offsets.back(), static_cast<int32_t>(local.size()));
}

TEST_P(TokenPermutationPropertyTest, RowsLieInTheirSlotInAscendingOrder) {
  for (int32_t slot = 0; slot < num_slots; ++slot) {
    int32_t before = -1;
    for (auto row = static_cast<size_t>(permutation.expert_offsets[static_cast<size_t>(slot)]);
         row < static_cast<size_t>(permutation.expert_offsets[static_cast<size_t>(slot) + 1]);
         ++row) {
      const int32_t choice = permutation.row_choice[row];
      EXPECT_EQ(slot_of_choice(choice), slot);
      EXPECT_EQ(permutation.row_token[row], choice / kTopK);
      EXPECT_GT(choice, before);
      before = choice;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, TokenPermutationPropertyTest, testing::Range(1, 9));

TEST(TokenPermutationTest, DoesNotAllocateWithinWhatWasReserved) {
  TokenPermutation p;
  p.reserve(40, 6);
  const int32_t* tokens = p.row_token.data();
  const int32_t* choices = p.row_choice.data();
  const int32_t* offsets = p.expert_offsets.data();
  permute_tokens(Ids(40, 1), 20, 2, identity_slots(6), 6, p);
  EXPECT_EQ(p.row_token.data(), tokens);
  EXPECT_EQ(p.row_choice.data(), choices);
  EXPECT_EQ(p.expert_offsets.data(), offsets);
}

TEST(TokenPermutationErrorTest, RefusesIdsSlotsAndSizesOutOfRange) {
  const auto code = ErrorCode::kInvalidArgument;
  expect_error(
      [] {
        permute({0, 0, 3, 0}, 2, identity_slots(3), 3);
      },
      code, {"token 1", "found 3"});
  expect_error([] { permute({0, -2}, 2, identity_slots(3), 3); }, code, {"token 0", "found -2"});
  expect_error([] { permute({1}, 1, {0, 5}, 3); }, code, {"expert 1", "found 5"});
  expect_error([] { permute({1}, 1, {0, -3}, 3); }, code, {"expert 1", "found -3"});
  TokenPermutation p;
  expect_error([&] { permute_tokens(Ids(5), 2, 2, identity_slots(3), 3, p); }, code,
               {"[2, 2]", "found 5"});
}

}  // namespace
}  // namespace gantry::test
