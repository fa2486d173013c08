// Every routing formula against the long double reference, over random logits.

#include "kernels/topk/topk_routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "tests/kernels/routing_reference.h"
#include "tests/kernels/routing_run.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/tolerance.h"

namespace gantry::test {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct RoutingCase {
  const char* name;
  RoutingSpec spec;
  bool has_bias = false;
  float bias_mean = 0.0F;
  bool has_scale = false;
  float logit_deviation = 2.0F;
};

void PrintTo(const RoutingCase& tested, std::ostream* out) { *out << tested.name; }

RoutingSpec spec_of(RouterScoring scoring, int num_experts, int top_k) {
  RoutingSpec spec;
  spec.scoring = scoring;
  spec.num_experts = num_experts;
  spec.top_k = top_k;
  return spec;
}

RoutingSpec renormalized(RoutingSpec spec, float scaling = 1.0F, float epsilon = 0.0F,
                         float minimum = 0.0F) {
  spec.renormalize = true;
  spec.scaling = scaling;
  spec.renorm_epsilon = epsilon;
  spec.renorm_min = minimum;
  return spec;
}

RoutingSpec grouped(RoutingSpec spec, GroupScore score, int num_groups, int topk_group,
                    float masked_score) {
  spec.group_score = score;
  spec.num_groups = num_groups;
  spec.topk_group = topk_group;
  spec.masked_score = masked_score;
  return spec;
}

RoutingSpec on_logits(RoutingSpec spec) {
  spec.select_on_logits = true;
  return spec;
}

RoutingSpec with_extra_experts(RoutingSpec spec, int num_zero, int num_fused_shared) {
  spec.num_zero_experts = num_zero;
  spec.num_fused_shared_experts = num_fused_shared;
  spec.shared_weight = 0.4F;
  return spec;
}

class TopkRoutingTest : public testing::TestWithParam<RoutingCase> {};

TEST_P(TopkRoutingTest, MatchesTheFormulasInLongDouble) {
  const auto& [name, spec, has_bias, bias_mean, has_scale, deviation] = GetParam();
  constexpr size_t kTokens = 64;
  const auto num_experts = static_cast<size_t>(spec.num_experts);
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  std::vector<float> bias(has_bias ? num_experts : 0);
  for (float& b : bias)
    b = rng.normal(bias_mean, 0.3F);
  const auto num_real = static_cast<size_t>(spec.num_experts - spec.num_zero_experts);
  const std::vector<float> scale = rng.normals(has_scale ? num_real : 0);
  const RoutingTensors tensors{bias, scale, {}};

  std::vector<float> logits;
  std::vector<RoutedToken> expected;
  for (int draws = 0; expected.size() < kTokens; ++draws) {
    ASSERT_LT(draws, 5000) << "hardly any logits are far enough from a tie";
    const std::vector<float> z = rng.normals(num_experts, deviation);
    RoutedToken token = reference_route(spec, tensors, z);
    if (token.margin < 1e-5L) continue;  // f32 may order these otherwise
    logits.insert(logits.end(), z.begin(), z.end());
    expected.push_back(std::move(token));
  }

  const Routed found = run_routing(spec, tensors, logits);

  const auto slots = static_cast<size_t>(spec.num_slots());
  // The sum over E experts, the one over K, exp of a difference of up to 30, and a few more.
  const double roundings = spec.num_experts + 2 * spec.top_k + 40;
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < slots; ++i) {
      ASSERT_EQ(found.ids[t * slots + i], expected[t].ids[i]) << "token " << t << ", choice " << i;
      const auto wanted = static_cast<double>(expected[t].weights[i]);
      ASSERT_NEAR(found.weights[t * slots + i], wanted, relative_tolerance(wanted, roundings))
          << "token " << t << ", choice " << i;
    }
    if (spec.num_zero_experts > 0) {
      const auto wanted = static_cast<double>(expected[t].identity);
      ASSERT_NEAR(found.identity[t], wanted, relative_tolerance(wanted, roundings)) << t;
    }
  }
}

using enum RouterScoring;
using enum GroupScore;

std::string case_name(const testing::TestParamInfo<RoutingCase>& tested) {
  return tested.param.name;
}

INSTANTIATE_TEST_SUITE_P(
    Ungrouped, TopkRoutingTest,
    testing::Values(
        RoutingCase{"Softmax", spec_of(kSoftmax, 8, 2)},
        RoutingCase{"SoftmaxRenormalized", renormalized(spec_of(kSoftmax, 60, 4))},
        RoutingCase{"SoftmaxManyExperts", renormalized(spec_of(kSoftmax, 512, 8))},
        RoutingCase{"SoftmaxEveryExpert", spec_of(kSoftmax, 5, 5)},
        RoutingCase{"OneExpert", renormalized(spec_of(kSoftmax, 1, 1))},
        RoutingCase{"SoftmaxBiasMinimum", renormalized(spec_of(kSoftmax, 64, 6), 1.0F, 0.0F, 0.5F),
                    true},
        RoutingCase{"SoftmaxPerExpertScale", renormalized(spec_of(kSoftmax, 24, 4)), false, 0.0F,
                    true},
        RoutingCase{"Sigmoid", spec_of(kSigmoid, 7, 3)},
        RoutingCase{"SigmoidBiasScaled", renormalized(spec_of(kSigmoid, 33, 6), 2.5F, 1e-20F),
                    true},
        RoutingCase{"SigmoidEpsilonCounts", renormalized(spec_of(kSigmoid, 12, 3), 1.0F, 0.25F)},
        RoutingCase{"SigmoidOnLogits", on_logits(spec_of(kSigmoid, 16, 1))},
        RoutingCase{"SigmoidOnLogitsBias", on_logits(renormalized(spec_of(kSigmoid, 16, 3))), true},
        RoutingCase{"SqrtSoftplus", spec_of(kSqrtSoftplus, 48, 6)},
        RoutingCase{"SqrtSoftplusBias", renormalized(spec_of(kSqrtSoftplus, 48, 6), 1.5F), true},
        RoutingCase{"SqrtSoftplusLargeLogits", spec_of(kSqrtSoftplus, 12, 3), false, 0.0F, false,
                    3000.0F},
        RoutingCase{"OverSelected", spec_of(kSoftmaxOverSelected, 32, 4)},
        RoutingCase{"OverSelectedBias", spec_of(kSoftmaxOverSelected, 40, 8), true},
        RoutingCase{"OverSelectedEveryExpert", spec_of(kSoftmaxOverSelected, 6, 6)}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Grouped, TopkRoutingTest,
    testing::Values(
        RoutingCase{"MaxMaskedZero", grouped(spec_of(kSoftmax, 24, 6), kMax, 6, 3, 0.0F)},
        RoutingCase{"MaxMaskedInfinity", grouped(renormalized(spec_of(kSigmoid, 30, 4), 16.0F),
                                                 kMax, 5, 2, kMinusInfinity)},
        RoutingCase{"OneGroup", grouped(spec_of(kSoftmax, 10, 3), kMax, 1, 1, 0.0F)},
        RoutingCase{"EveryGroup", grouped(spec_of(kSoftmax, 12, 3), kMax, 4, 4, 0.0F)},
        RoutingCase{"EveryExpertOfTheKept", grouped(spec_of(kSigmoid, 12, 6), kMax, 4, 2, 0.0F)},
        RoutingCase{"TopTwoSum",
                    grouped(renormalized(spec_of(kSigmoid, 64, 8), 2.5F, 1e-20F), kTopTwoSum, 8, 4,
                            kMinusInfinity),
                    true},
        RoutingCase{"TopTwoSumGroupsOfTwo",
                    grouped(spec_of(kSigmoid, 14, 4), kTopTwoSum, 7, 3, kMinusInfinity), true},
        // Every biased score is below 0, so a mask of 0 would win: -infinity must not.
        RoutingCase{"TopTwoSumVeryNegativeBias",
                    grouped(spec_of(kSigmoid, 32, 6), kTopTwoSum, 4, 2, kMinusInfinity), true,
                    -5.0F},
        // And where the family says 0, the masked experts do win, lowest id first.
        RoutingCase{"TopTwoSumVeryNegativeBiasMaskedZero",
                    grouped(spec_of(kSigmoid, 32, 6), kTopTwoSum, 4, 2, 0.0F), true, -5.0F},
        RoutingCase{"TopKOfEach", grouped(spec_of(kSoftmax, 40, 8), kTopKOfEach, 4, 1, 0.0F)},
        RoutingCase{"TopKOfEachRenormalized",
                    grouped(renormalized(spec_of(kSoftmax, 21, 3)), kTopKOfEach, 3, 1, 0.0F)}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    ExtraExperts, TopkRoutingTest,
    testing::Values(RoutingCase{"Zero", with_extra_experts(spec_of(kSoftmax, 20, 6), 8, 0), true},
                    RoutingCase{"ZeroAllButOne", with_extra_experts(spec_of(kSigmoid, 6, 3), 5, 0)},
                    RoutingCase{"ZeroAndScale", with_extra_experts(spec_of(kSoftmax, 10, 4), 4, 0),
                                false, 0.0F, true},
                    RoutingCase{"FusedShared",
                                with_extra_experts(renormalized(spec_of(kSigmoid, 16, 4)), 0, 2)},
                    RoutingCase{"ZeroAndFusedShared",
                                with_extra_experts(spec_of(kSoftmax, 12, 4), 4, 1)}),
    case_name);

}  // namespace
}  // namespace gantry::test
