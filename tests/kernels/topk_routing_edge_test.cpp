// Ties, saturation, NaN and infinity, tables and callbacks: what random logits do not show.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/topk/topk_routing.h"
#include "tests/kernels/routing_reference.h"
#include "tests/kernels/routing_run.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/tolerance.h"

namespace gantry::test {
namespace {

using enum RouterScoring;
using Ids = std::vector<int32_t>;
using Floats = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

RoutingSpec spec_of(RouterScoring scoring, int num_experts, int top_k) {
  RoutingSpec spec;
  spec.scoring = scoring;
  spec.num_experts = num_experts;
  spec.top_k = top_k;
  return spec;
}

TEST(TopkRoutingTieTest, TheLowestIndexWins) {
  const Routed found = run_routing(spec_of(kSoftmax, 6, 3), {}, Floats{0, 2, 1, 2, 1, 1});
  EXPECT_EQ(found.ids, (Ids{1, 3, 2}));
}

TEST(TopkRoutingTieTest, AllEqualLogitsTakeTheFirstExperts) {
  const Routed found = run_routing(spec_of(kSigmoid, 100, 5), {}, Floats(100, 0.5F));
  EXPECT_EQ(found.ids, (Ids{0, 1, 2, 3, 4}));
}

TEST(TopkRoutingTieTest, TheLowestOfEqualGroupsWins) {
  RoutingSpec spec = spec_of(kSigmoid, 6, 2);
  spec.group_score = GroupScore::kMax;
  spec.num_groups = 3;
  EXPECT_EQ(run_routing(spec, {}, Floats{0, 0, 1, 2, 2, 1}).ids, (Ids{3, 2}));
}

TEST(TopkRoutingTieTest, PlusAndMinusZeroTie) {
  const Routed found = run_routing(spec_of(kSoftmaxOverSelected, 3, 1), {}, Floats{-0.0F, 0, -1});
  EXPECT_EQ(found.ids, Ids{0});
}

TEST(TopkRoutingSaturationTest, ScoresTieButLogitsDoNot) {
  // sigmoid of 30 and of 40 are both 1 in f32.
  const Floats logits = {0, 30, 40, 35};
  RoutingSpec spec = spec_of(kSigmoid, 4, 1);
  EXPECT_EQ(run_routing(spec, {}, logits).ids, Ids{1});
  spec.select_on_logits = true;
  const Routed found = run_routing(spec, {}, logits);
  EXPECT_EQ(found.ids, Ids{2});
  EXPECT_EQ(found.weights, Floats{1.0F});
}

TEST(TopkRoutingSaturationTest, SoftmaxOfHugeLogitsDoesNotOverflow) {
  const Routed found = run_routing(spec_of(kSoftmax, 3, 2), {}, Floats{3e38F, -3e38F, 3e38F});
  EXPECT_EQ(found.ids, (Ids{0, 2}));
  EXPECT_EQ(found.weights, (Floats{0.5F, 0.5F}));
}

TEST(TopkRoutingSaturationTest, SqrtSoftplusIsExactAtBothEnds) {
  const Routed found =
      run_routing(spec_of(kSqrtSoftplus, 4, 4), {}, Floats{1e30F, 400.0F, -400.0F, -kInfinity});
  EXPECT_EQ(found.ids, (Ids{0, 1, 2, 3}));
  EXPECT_FLOAT_EQ(found.weights[0], 1e15F);
  EXPECT_EQ(found.weights[1], 20.0F);
  EXPECT_EQ(found.weights[2], 0.0F);
  EXPECT_EQ(found.weights[3], 0.0F);
}

TEST(TopkRoutingRenormTest, SoftmaxOverSelectedEqualsSoftmaxThenRenormalize) {
  SeededRng rng;
  const Floats logits = rng.normals(50 * 32, 3.0F);
  RoutingSpec all = spec_of(kSoftmax, 32, 4);
  all.renormalize = true;
  const Routed a = run_routing(all, {}, logits);
  const Routed b = run_routing(spec_of(kSoftmaxOverSelected, 32, 4), {}, logits);
  EXPECT_EQ(a.ids, b.ids);
  const std::vector<double> expected(a.weights.begin(), a.weights.end());
  EXPECT_TRUE(all_close(b.weights, expected, relative_tolerance(1.0, 100)));
}

TEST(TopkRoutingRenormTest, TheMinimumBoundsAVanishingSum) {
  RoutingSpec spec = spec_of(kSigmoid, 2, 2);
  spec.renormalize = true;
  spec.renorm_min = 0.125F;
  const Routed found = run_routing(spec, {}, Floats{-200, -200});  // both scores are 0
  EXPECT_EQ(found.weights, (Floats{0, 0}));
}

TEST(TopkRoutingPropertyTest, IsInvariantUnderRelabellingOfExperts) {
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  constexpr size_t kExperts = 37;
  const Floats logits = rng.normals(kExperts);
  const Floats bias = rng.normals(kExperts);
  std::vector<size_t> label(kExperts);
  std::iota(label.begin(), label.end(), 0U);
  std::shuffle(label.begin(), label.end(), rng.engine());
  Floats relabelled_logits(kExperts);
  Floats relabelled_bias(kExperts);
  for (size_t e = 0; e < kExperts; ++e) {
    relabelled_logits[label[e]] = logits[e];
    relabelled_bias[label[e]] = bias[e];
  }
  const RoutingSpec spec = spec_of(kSigmoid, kExperts, 6);
  const Routed found = run_routing(spec, {bias, {}, {}}, logits);
  const Routed other = run_routing(spec, {relabelled_bias, {}, {}}, relabelled_logits);
  EXPECT_EQ(found.weights, other.weights);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(static_cast<size_t>(other.ids[i]), label[static_cast<size_t>(found.ids[i])]);
  }
}

TEST(TopkRoutingPropertyTest, ATokenDoesNotDependOnTheOthers) {
  SeededRng rng;
  const RoutingSpec spec = spec_of(kSoftmax, 19, 3);
  const Floats logits = rng.normals(19 * 8);
  const Routed batch = run_routing(spec, {}, logits);
  const Routed alone = run_routing(spec, {}, std::span(logits).subspan(19 * 5, 19));
  EXPECT_TRUE(std::equal(alone.ids.begin(), alone.ids.end(), batch.ids.begin() + 15));
  EXPECT_TRUE(std::equal(alone.weights.begin(), alone.weights.end(), batch.weights.begin() + 15));
}

TEST(TopkRoutingPropertyTest, ZeroTokensAreRouted) {
  EXPECT_TRUE(run_routing(spec_of(kSoftmax, 8, 2), {}, {}).ids.empty());
}

// Every scoring with logits that mean nothing: ids stay usable, weights say NaN.
class TopkRoutingNanTest : public testing::TestWithParam<RouterScoring> {
 protected:
  static void expect_distinct_in_range(const Ids& ids, int num_experts) {
    EXPECT_EQ(std::set<int32_t>(ids.begin(), ids.end()).size(), ids.size());
    for (const int32_t id : ids)
      EXPECT_TRUE(id >= 0 && id < num_experts) << id;
  }
  static void expect_all_nan(const Floats& weights) {
    for (const float w : weights)
      EXPECT_TRUE(std::isnan(w)) << w;
  }
};

TEST_P(TopkRoutingNanTest, OneNanLogitIsPassedOverAndPoisonsTheWeights) {
  const Routed found = run_routing(spec_of(GetParam(), 5, 3), {}, Floats{0, 1, kNan, 2, 3});
  expect_distinct_in_range(found.ids, 5);
  expect_all_nan(found.weights);
}

TEST_P(TopkRoutingNanTest, AllNanLogitsGiveTheFirstExperts) {
  const Routed found = run_routing(spec_of(GetParam(), 5, 3), {}, Floats(5, kNan));
  EXPECT_EQ(found.ids, (Ids{0, 1, 2}));
  expect_all_nan(found.weights);
}

TEST_P(TopkRoutingNanTest, NanInGroupsKeepsIdsInRange) {
  RoutingSpec spec = spec_of(GetParam(), 8, 3);
  spec.group_score = GroupScore::kTopTwoSum;
  spec.num_groups = 4;
  spec.topk_group = 2;
  spec.masked_score = -kInfinity;
  spec.renormalize = true;
  const Routed found = run_routing(spec, {}, Floats{0, 1, kNan, 2, 3, kNan, kNan, kNan});
  expect_distinct_in_range(found.ids, 8);
  expect_all_nan(found.weights);
}

TEST_P(TopkRoutingNanTest, InfiniteLogitsKeepIdsInRange) {
  for (const float value : {kInfinity, -kInfinity}) {
    const Routed found = run_routing(spec_of(GetParam(), 4, 4), {}, Floats{value, 1, value, 0});
    expect_distinct_in_range(found.ids, 4);
  }
}

INSTANTIATE_TEST_SUITE_P(Scorings, TopkRoutingNanTest,
                         testing::Values(kSoftmax, kSigmoid, kSqrtSoftplus, kSoftmaxOverSelected));

TEST(TopkRoutingNanSelectionTest, NanSelectsLikeMinusInfinity) {
  EXPECT_EQ(run_routing(spec_of(kSigmoid, 4, 3), {}, Floats{kNan, 1, 3, 2}).ids, (Ids{2, 3, 1}));
}

TEST(TopkRoutingScratchTest, WhatItHeldBeforeDoesNotMatter) {
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  RoutingSpec spec = spec_of(kSigmoid, 24, 4);
  spec.group_score = GroupScore::kTopTwoSum;
  spec.num_groups = 4;
  spec.topk_group = 2;
  const Floats logits = rng.normals(3 * 24);
  const Routed fresh = run_routing(spec, {}, logits);
  for (const size_t size : {size_t{1}, size_t{500}}) {
    TopkScratch used{Floats(size, kNan), Floats(size, kNan), Ids(size, -9), Floats(size, kNan),
                     Ids(size, -9)};
    Ids ids(12);
    Floats weights(12);
    topk_routing(spec, {}, logits, {}, ids, weights, {}, used);
    EXPECT_EQ(ids, fresh.ids);
    EXPECT_EQ(weights, fresh.weights);
  }
}

TEST(HashRoutingTest, IdsComeFromTheTableAndWeightsFromTheScores) {
  RoutingSpec spec = spec_of(kSqrtSoftplus, 9, 3);
  spec.method = RoutingMethod::kHash;
  spec.renormalize = true;
  spec.scaling = 1.5F;
  const Ids table = {0, 1, 2, 8, 4, 6, 5, 5, 3};  // three token ids; a row may repeat an expert
  const Ids token_ids = {2, 0, 1, 1};
  SeededRng rng;
  const Floats logits = rng.normals(4 * 9);
  const Routed found = run_routing(spec, {{}, {}, table}, logits, token_ids);
  for (size_t t = 0; t < 4; ++t) {
    const auto row = std::span(table).subspan(static_cast<size_t>(token_ids[t]) * 3, 3);
    const RoutedToken expected =
        reference_route(spec, {}, std::span(logits).subspan(t * 9, 9), row);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(found.ids[t * 3 + i], row[i]);
      EXPECT_NEAR(found.weights[t * 3 + i], static_cast<double>(expected.weights[i]), 1e-6);
    }
  }
}

TEST(HashRoutingTest, RefusesIdsOutsideTheTableAndTheExperts) {
  RoutingSpec spec = spec_of(kSigmoid, 4, 2);
  spec.method = RoutingMethod::kHash;
  const Ids table = {0, 1, 2, 4, -1, 0};
  const auto route = [&](int32_t token_id) {
    run_routing(spec, {{}, {}, table}, Floats(4), Ids{token_id});
  };
  EXPECT_NO_THROW(route(0));
  expect_error([&] { route(3); }, ErrorCode::kInvalidArgument, {"token id", "found 3"});
  expect_error([&] { route(-1); }, ErrorCode::kInvalidArgument, {"token id", "found -1"});
  expect_error([&] { route(1); }, ErrorCode::kInvalidArgument, {"token id 1", "found 4"});
  expect_error([&] { route(2); }, ErrorCode::kInvalidArgument, {"token id 2", "found -1"});
}

TEST(CustomRoutingTest, TheCallbackFillsIdsAndWeightsBeforeScaling) {
  RoutingSpec spec = spec_of(kSoftmax, 4, 2);
  spec.method = RoutingMethod::kCustom;
  spec.scaling = 2.0F;
  spec.num_fused_shared_experts = 1;
  spec.custom = [](std::span<const float> logits, int64_t num_tokens, std::span<int32_t> ids,
                   std::span<float> weights) {
    EXPECT_EQ(logits.size(), 8U);
    EXPECT_EQ(num_tokens, 2);
    std::copy_n(Ids{3, 0, 1, -1}.begin(), 4, ids.begin());
    std::copy_n(Floats{0.5F, 0.25F, 1.0F, 0.0F}.begin(), 4, weights.begin());
  };
  const Routed found = run_routing(spec, {}, Floats(8));
  EXPECT_EQ(found.ids, (Ids{3, 0, 4, 1, -1, 4}));
  EXPECT_EQ(found.weights, (Floats{1.0F, 0.5F, 1.0F, 2.0F, 0.0F, 1.0F}));
}

TEST(CustomRoutingTest, RefusesIdsThatDoNotExist) {
  RoutingSpec spec = spec_of(kSoftmax, 4, 1);
  spec.method = RoutingMethod::kCustom;
  spec.custom = [](auto, int64_t, std::span<int32_t> ids, auto) { ids[0] = 4; };
  expect_error([&] { run_routing(spec, {}, Floats(4)); }, ErrorCode::kInvalidArgument,
               {"custom", "found 4"});
}

}  // namespace
}  // namespace gantry::test
