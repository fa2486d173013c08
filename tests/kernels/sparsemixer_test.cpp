#include "kernels/topk/sparsemixer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/routing_run.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/tolerance.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

struct TopTwo {
  std::array<int32_t, 2> ids = {-7, -7};
  std::array<float, 2> weights = {-7, -7};
};

TopTwo run_sparsemixer(const Floats& logits, float jitter = 0.01F) {
  TopTwo top;
  sparsemixer_top2(logits, jitter, top.ids, top.weights);
  return top;
}

// The evaluation path of the Phi-3.5-MoE module, tensor operation by tensor operation: max, clamp,
// masked_fill, softmax, gather, and again over the scores with the first expert scattered to -inf.
struct ModuleOutput {
  std::array<size_t, 2> ids;
  std::array<long double, 2> weights;
  bool clear = true;  // no comparison with 2 eps so close that f32 may decide it otherwise
};

ModuleOutput transformers_sparsemixer(const Floats& scores, float jitter_eps) {
  constexpr long double kMinusInfinity = -std::numeric_limits<long double>::infinity();
  ModuleOutput output{};
  std::vector<long double> masked_scores(scores.begin(), scores.end());
  for (size_t round = 0; round < 2; ++round) {
    const auto max = std::max_element(masked_scores.begin(), masked_scores.end());
    const long double threshold = *max;
    output.ids[round] = static_cast<size_t>(max - masked_scores.begin());
    std::vector<long double> masked_gates = masked_scores;
    for (size_t e = 0; e < scores.size(); ++e) {
      const long double score = scores[e];
      const long double factor = std::fmax(std::fabs(score), threshold);
      const long double distance = (threshold - score) / factor;
      if (distance > 2 * static_cast<long double>(jitter_eps)) masked_gates[e] = kMinusInfinity;
      if (std::fabs(distance - 2 * static_cast<long double>(jitter_eps)) < 1e-6L) {
        output.clear = false;
      }
    }
    long double sum = 0;
    for (const long double gate : masked_gates)
      sum += std::exp(gate - threshold);
    output.weights[round] = std::exp(masked_gates[output.ids[round]] - threshold) / sum;
    masked_scores[output.ids[round]] = kMinusInfinity;
  }
  return output;
}

TEST(SparsemixerTest, MatchesTheModuleOverRandomLogits) {
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  int compared = 0;
  for (int i = 0; i < 3000; ++i) {
    // Offsets move all logits above or below 0, where the clamp acts differently; small deviations
    // put several experts inside the mask.
    const float offset = rng.uniform(-20.0F, 20.0F);
    const float deviation = rng.uniform(0.01F, 2.0F);
    Floats logits = rng.normals(static_cast<size_t>(rng.integer(2, 20)), deviation);
    for (float& z : logits)
      z += offset;
    const ModuleOutput expected = transformers_sparsemixer(logits, 0.01F);
    if (!expected.clear) continue;
    ++compared;
    const TopTwo found = run_sparsemixer(logits);
    for (size_t j = 0; j < 2; ++j) {
      ASSERT_EQ(static_cast<size_t>(found.ids[j]), expected.ids[j]) << "draw " << i;
      ASSERT_NEAR(found.weights[j], static_cast<double>(expected.weights[j]),
                  relative_tolerance(1.0, 80))
          << "draw " << i;
    }
  }
  EXPECT_GT(compared, 2500);
}

TEST(SparsemixerTest, ExpertsOutsideTheJitterDoNotShareTheWeight) {
  const TopTwo found = run_sparsemixer({1, 5, 3, 2});
  EXPECT_EQ(found.ids, (std::array<int32_t, 2>{1, 2}));
  EXPECT_EQ(found.weights, (std::array<float, 2>{1, 1}));
}

TEST(SparsemixerTest, AWideJitterIsAPlainSoftmax) {
  const TopTwo found = run_sparsemixer({1, 2, 3}, 100.0F);
  const double sum = std::exp(-2.0) + std::exp(-1.0) + 1.0;
  EXPECT_NEAR(found.weights[0], 1.0 / sum, 1e-6);
  EXPECT_NEAR(found.weights[1], 1.0 / (1.0 + std::exp(-1.0)), 1e-6);  // without the first expert
}

TEST(SparsemixerTest, TiesTakeTheLowestIndex) {
  const TopTwo found = run_sparsemixer({1, 4, 4, 4});
  EXPECT_EQ(found.ids, (std::array<int32_t, 2>{1, 2}));
  EXPECT_NEAR(found.weights[0], 1.0 / 3, 1e-7);
  EXPECT_NEAR(found.weights[1], 1.0 / 2, 1e-7);
}

TEST(SparsemixerTest, AllZeroLogitsShareEvenly) {
  // (0 - 0) / 0 is NaN, which masks nothing.
  const TopTwo found = run_sparsemixer({0, 0, 0, 0});
  EXPECT_EQ(found.ids, (std::array<int32_t, 2>{0, 1}));
  EXPECT_FLOAT_EQ(found.weights[0], 0.25F);
  EXPECT_FLOAT_EQ(found.weights[1], 1.0F / 3);
}

TEST(SparsemixerTest, NanAnywhereKeepsIdsInRangeAndPoisonsTheWeights) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Floats& logits : {Floats{nan, 1, 2}, Floats{1, nan, 2}, Floats{1, 2, nan},
                               Floats{nan, nan, nan}, Floats{nan, 1}, Floats{1, nan}}) {
    const TopTwo found = run_sparsemixer(logits);
    const auto num_experts = static_cast<int32_t>(logits.size());
    EXPECT_TRUE(found.ids[0] >= 0 && found.ids[0] < num_experts);
    EXPECT_TRUE(found.ids[1] >= 0 && found.ids[1] < num_experts && found.ids[1] != found.ids[0]);
    EXPECT_TRUE(std::isnan(found.weights[0]) && std::isnan(found.weights[1]));
  }
}

TEST(SparsemixerTest, MinusInfinityIsAnExpertThatIsNotThere) {
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  const TopTwo found = run_sparsemixer({minus_infinity, 2, minus_infinity, 1});
  EXPECT_EQ(found.ids, (std::array<int32_t, 2>{1, 3}));
  EXPECT_EQ(found.weights, (std::array<float, 2>{1, 1}));
}

TEST(SparsemixerTest, RoutesThroughTheSpecWithItsScaling) {
  RoutingSpec spec;
  spec.method = RoutingMethod::kSparsemixer;
  spec.num_experts = 4;
  spec.top_k = 2;
  spec.scaling = 3.0F;
  const Routed found = run_routing(spec, {}, Floats{1, 5, 3, 2, 9, 1, 1, 7});
  EXPECT_EQ(found.ids, (std::vector<int32_t>{1, 2, 0, 3}));
  EXPECT_EQ(found.weights, Floats(4, 3.0F));
}

}  // namespace
}  // namespace gantry::test
