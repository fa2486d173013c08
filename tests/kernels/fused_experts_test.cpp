// The fused experts against plain loops in double, for every kernel.

#include "kernels/fused_moe/fused_experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "tests/kernels/fused_kernels.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

class FusedExpertsTest : public FusedKernelTest {};

TEST_P(FusedExpertsTest, MatchesTheReferenceForOddAndEvenSizes) {
  for (const int64_t hidden : {24, 40, 64, 72}) {
    for (const int64_t intermediate : {16, 20, 32, 33})
      expect_matches_reference(random_case({.hidden = hidden, .intermediate = intermediate}));
  }
}

TEST_P(FusedExpertsTest, AllTokensMayGoToOneExpert) {
  // More rows than a task (256) and than a kernel's call (48) takes.
  FusedCase c = random_case({.num_tokens = 300, .top_k = 1});
  std::ranges::fill(c.ids, 4);
  expect_matches_reference(c);
}

TEST_P(FusedExpertsTest, NoTokensAreFine) {
  EXPECT_TRUE(run(random_case({.num_tokens = 0})).empty());
}

TEST_P(FusedExpertsTest, ATokenWithoutExpertsHasZeros) {
  FusedCase c = random_case({.num_tokens = 7});
  std::ranges::fill(c.ids, -1);
  EXPECT_EQ(run(c), Floats(c.x.size(), 0.0F));
}

TEST_P(FusedExpertsTest, ATokenHasTheSameBitsAloneAndInABatch) {
  const FusedCase batch = random_case({.num_experts = 2, .num_tokens = 70, .has_bias = true});
  const Floats together = run(batch);
  FusedCase alone = random_case({.num_experts = 2, .num_tokens = 1, .has_bias = true});
  alone.w13 = batch.w13;
  alone.w2 = batch.w2;
  alone.b13 = batch.b13;
  alone.b2 = batch.b2;
  alone.store();
  for (int64_t token = 0; token < 70; ++token) {
    const auto part = [&](auto& target, const auto& source, int64_t size) {
      target.assign(source.begin() + token * size, source.begin() + (token + 1) * size);
    };
    part(alone.x, batch.x, 40);
    part(alone.ids, batch.ids, 2);
    part(alone.weights, batch.weights, 2);
    EXPECT_TRUE(std::ranges::equal(
        run(alone), std::span(together).subspan(static_cast<size_t>(token) * 40, 40)))
        << "token " << token;
  }
}

TEST_P(FusedExpertsTest, AddsTheBiasesOfTheRowsExpert) {
  expect_matches_reference(random_case({.hidden = 72, .intermediate = 20, .has_bias = true}));
}

TEST_P(FusedExpertsTest, LeavesTheBiasOfW2ToAnotherRank) {
  const FusedCase c = random_case({.has_bias = true});
  expect_matches_reference(c, {.add_w2_bias = false});
}

TEST_P(FusedExpertsTest, TakesUngatedActivations) {
  for (const Activation kind : {Activation::kSiluNoMul, Activation::kRelu2NoMul}) {
    for (const int64_t intermediate : {20, 33}) {
      expect_matches_reference(random_case(
          {.intermediate = intermediate, .activation = {.kind = kind}, .has_bias = true}));
    }
  }
}

TEST_P(FusedExpertsTest, TakesActivationsWithConstantsAndThoseWithoutVectorCode) {
  expect_matches_reference(random_case({.activation = {.kind = Activation::kSilu, .limit = 0.5F}}));
  expect_matches_reference(random_case(
      {.activation = {.kind = Activation::kSwigluOai, .limit = 1.5F}, .has_bias = true}));
  expect_matches_reference(random_case({.activation = {.kind = Activation::kGelu}}));
}

TEST_P(FusedExpertsTest, InputWeightsScaleTheRowsBeforeTheyAreRounded) {
  FusedCase c = random_case({.num_tokens = 40});
  c.input_weights = rng.normals(c.weights.size());
  expect_matches_reference(c);
  c.weights.clear();
  expect_matches_reference(c);
}

TEST_P(FusedExpertsTest, WithoutWeightsEveryExpertCountsAsItIs) {
  FusedCase c = random_case({});
  c.weights.clear();
  expect_matches_reference(c);
}

TEST_P(FusedExpertsTest, AnExpertNamedTwiceCountsTwice) {
  FusedCase c = random_case({.num_tokens = 9});
  for (size_t i = 0; i < c.ids.size(); ++i)
    c.ids[i] = static_cast<int32_t>(i / 2 % 6);
  expect_matches_reference(c);
}

TEST_P(FusedExpertsTest, AddsToItsOutputInsteadOfClearingIt) {
  const FusedCase c = random_case({});
  FusedOptions options;
  options.add_to = rng.normals(c.x.size());
  expect_matches_reference(c, options);
  options.add_to.assign(c.x.size(), 0.0F);
  EXPECT_EQ(run(c, options), run(c));
}

TEST_P(FusedExpertsTest, ExpertsElsewhereAreLeftOut) {
  FusedCase c = random_case({});
  c.expert_to_slot = {1, -1, 0, -1, -1, 2};
  c.store();
  expect_matches_reference(c);
}

TEST_P(FusedExpertsTest, SlotsInAnyOrderGiveTheBitsOfLogicalOrder) {
  FusedCase c = random_case({.num_tokens = 33, .top_k = 5});
  const Floats expected = run(c);
  for (int attempt = 0; attempt < 5; ++attempt) {
    std::shuffle(c.expert_to_slot.begin(), c.expert_to_slot.end(), rng.engine());
    c.store();
    EXPECT_EQ(run(c), expected);
  }
}

TEST_P(FusedExpertsTest, DoesNotReadAnExpertWithoutRows) {
  FusedCase c = random_case({.has_bias = true});
  for (int32_t& id : c.ids)
    id = id == 1 || id == 5 ? 3 : id;
  const Floats expected = run(c);
  for (const int64_t idle : {1, 5})
    std::memset(c.slot(idle), 0xff, static_cast<size_t>(c.experts.slot_stride_bytes));  // NaN
  EXPECT_EQ(run(c), expected);
}

TEST_P(FusedExpertsTest, NanOfOneTokenStaysInItsToken) {
  FusedCase c = random_case({.num_experts = 1, .num_tokens = 20, .top_k = 1});
  std::ranges::fill(c.ids, 0);
  const Floats clean = run(c);
  c.x[13 * 40 + 39] = std::numeric_limits<float>::quiet_NaN();
  const Floats found = run(c);
  for (size_t i = 0; i < found.size(); ++i) {
    if (i / 40 == 13) {
      EXPECT_TRUE(std::isnan(found[i])) << i;
    } else {
      EXPECT_EQ(found[i], clean[i]) << i;
    }
  }
}

TEST_P(FusedExpertsTest, TheNumberOfThreadsDoesNotChangeABit) {
  const FusedCase c = random_case({.hidden = 72, .num_tokens = 150, .top_k = 4});
  const Floats one = run(c);
  for (const int count : {2, 5})
    EXPECT_EQ(run(c, {.threads = {.count = count, .executor = {}}}), one) << count << " threads";
}

TEST_P(FusedExpertsTest, TheOrderOfTheTasksDoesNotChangeABit) {
  const FusedCase c = random_case({.hidden = 72, .num_tokens = 150, .top_k = 4});
  const auto backwards = [](int64_t num_tasks, const std::function<void(int64_t)>& body) {
    while (num_tasks > 0)
      body(--num_tasks);
  };
  EXPECT_EQ(run(c, {.threads = {.count = 3, .executor = backwards}}), run(c));
}

TEST_P(FusedExpertsTest, RowsWithoutAMapAreTheTokensThemselves) {
  // As shared experts run: one slot, every token a row. More rows than one task gathers (32).
  FusedCase c = random_case({.num_experts = 1, .num_tokens = 70, .top_k = 1, .has_bias = true});
  std::ranges::fill(c.ids, 0);
  c.input_weights = rng.normals(70);
  const std::vector<int32_t> offsets = {0, 70};
  const std::vector<int32_t> order = {0};
  const ExpertRows unmapped{
      .token = nullptr, .choice = nullptr, .offsets = offsets, .order = order};
  EXPECT_EQ(c.run(kernels, GetParam().activations, {}, unmapped), run(c));
  c.weights.clear();
  c.input_weights.clear();
  EXPECT_EQ(c.run(kernels, GetParam().activations, {}, unmapped), run(c));
}

INSTANTIATE_TEST_SUITE_P(AllKernels, FusedExpertsTest, testing::ValuesIn(fused_kernels()),
                         [](const auto& tested) { return fused_kernel_name(tested.param); });

}  // namespace
}  // namespace gantry::test
