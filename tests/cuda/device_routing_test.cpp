// Routing on the device against the host's.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cuda/device_kernels.h"
#include "runtime/device_forward.h"
#include "tests/kernels/routing_reference.h"
#include "tests/kernels/routing_run.h"
#include "tests/support/device_array.h"
#include "tests/support/tolerance.h"

namespace gantry::test {
namespace {

class DeviceRoutingTest : public DeviceTest {
 protected:
  Routed route(const RoutingSpec& spec, const RoutingTensors& tensors,
               const std::vector<float>& logits, const std::vector<int32_t>& token_ids = {}) {
    const auto tokens = static_cast<int64_t>(logits.size()) / spec.num_experts;
    const auto values = static_cast<size_t>(tokens * spec.num_slots());
    const auto array = [this](auto span) {
      using T = std::remove_const_t<typename decltype(span)::element_type>;
      return DeviceArray<T>(device, std::vector<T>(span.begin(), span.end()));
    };
    const auto z = array(std::span<const float>(logits));
    const auto token = array(std::span<const int32_t>(token_ids));
    const auto bias = array(tensors.correction_bias);
    const auto scale = array(tensors.per_expert_scale);
    const auto table = array(tensors.hash_table);
    const DeviceArray<int32_t> ids(device, values);
    const DeviceArray<float> weights(device, values);
    const DeviceArray<float> identity(device, static_cast<size_t>(tokens));
    device->kernels().route(
        {.spec = device_routing(spec),
         .logits = z.data(),
         .token_ids = token.data(),
         .correction_bias = tensors.correction_bias.empty() ? nullptr : bias.data(),
         .per_expert_scale = tensors.per_expert_scale.empty() ? nullptr : scale.data(),
         .hash_table = table.data(),
         .vocab = static_cast<int64_t>(tensors.hash_table.size()) / spec.top_k,
         .topk_ids = ids.data(),
         .topk_weights = weights.data(),
         .identity_weights = identity.data(),
         .num_tokens = tokens},
        device->attributes(), nullptr);
    Routed routed{ids.read(), weights.read(), identity.read()};
    if (spec.num_zero_experts == 0) routed.identity.clear();
    return routed;
  }

  /// The same ids where no choice is closer than f32 can tell, and weights within the roundings of
  /// a softmax over all experts.
  void expect_same(const RoutingSpec& spec, const RoutingTensors& tensors,
                   const std::vector<float>& logits) {
    const Routed found = route(spec, tensors, logits);
    const auto experts = static_cast<size_t>(spec.num_experts);
    const auto slots = static_cast<size_t>(spec.num_slots());
    const double roundings = 2.0 * spec.num_experts + 40;
    for (size_t t = 0; t * experts < logits.size(); ++t) {
      const RoutedToken expected =
          reference_route(spec, tensors, std::span(logits).subspan(t * experts, experts));
      if (expected.margin < 1e-5L) continue;
      for (size_t i = 0; i < slots; ++i) {
        ASSERT_EQ(found.ids[t * slots + i], expected.ids[i])
            << "token " << t << " seed " << rng.seed();
        const auto wanted = static_cast<double>(expected.weights[i]);
        ASSERT_NEAR(static_cast<double>(found.weights[t * slots + i]), wanted,
                    relative_tolerance(wanted, roundings));
      }
      if (spec.num_zero_experts > 0) {
        const auto wanted = static_cast<double>(expected.identity);
        ASSERT_NEAR(static_cast<double>(found.identity[t]), wanted,
                    relative_tolerance(wanted, roundings));
      }
    }
  }

  static RoutingSpec spec_of(RouterScoring scoring, int experts, int top_k) {
    RoutingSpec spec;
    spec.scoring = scoring;
    spec.num_experts = experts;
    spec.top_k = top_k;
    return spec;
  }
  std::vector<float> logits_for(const RoutingSpec& spec, size_t tokens = 33) {
    return rng.normals(tokens * static_cast<size_t>(spec.num_experts), 2.0F);
  }
};

TEST_F(DeviceRoutingTest, RoutesEveryScoring) {
  for (const RouterScoring scoring :
       {RouterScoring::kSoftmax, RouterScoring::kSigmoid, RouterScoring::kSqrtSoftplus,
        RouterScoring::kSoftmaxOverSelected}) {
    for (const int experts : {1, 7, 32, 130}) {
      RoutingSpec spec = spec_of(scoring, experts, std::min(experts, 6));
      spec.renormalize = scoring != RouterScoring::kSoftmaxOverSelected && experts % 2 == 0;
      spec.scaling = 1.5F;
      expect_same(spec, {}, logits_for(spec));
    }
  }
}

TEST_F(DeviceRoutingTest, RoutesWithBiasGroupsAndScale) {
  RoutingSpec spec = spec_of(RouterScoring::kSigmoid, 64, 8);
  spec.group_score = GroupScore::kTopTwoSum;
  spec.num_groups = 8;
  spec.topk_group = 4;
  spec.masked_score = -std::numeric_limits<float>::infinity();
  spec.renormalize = true;
  spec.renorm_epsilon = 1e-20F;
  const std::vector<float> bias = rng.normals(64, 0.2F);
  const std::vector<float> scale = rng.normals(64, 0.5F);
  expect_same(spec, {.correction_bias = bias, .per_expert_scale = scale, .hash_table = {}},
              logits_for(spec));
}

TEST_F(DeviceRoutingTest, RoutesWithTheBestOfEachGroup) {
  RoutingSpec spec = spec_of(RouterScoring::kSoftmax, 48, 6);
  spec.group_score = GroupScore::kTopKOfEach;
  spec.num_groups = 3;
  spec.topk_group = 3;
  expect_same(spec, {}, logits_for(spec));
}

TEST_F(DeviceRoutingTest, RoutesToIdentityAndFusedSharedExperts) {
  RoutingSpec spec = spec_of(RouterScoring::kSoftmax, 20, 4);
  spec.num_zero_experts = 6;
  spec.num_fused_shared_experts = 2;
  spec.shared_weight = 0.5F;
  expect_same(spec, {}, logits_for(spec));
}

TEST_F(DeviceRoutingTest, TakesIdsFromTheHashTable) {
  RoutingSpec spec = spec_of(RouterScoring::kSqrtSoftplus, 12, 3);
  spec.method = RoutingMethod::kHash;
  std::vector<int32_t> table(5 * 3);
  for (size_t i = 0; i < table.size(); ++i)
    table[i] = static_cast<int32_t>(i * 7 % 12);
  const RoutingTensors tensors{.correction_bias = {}, .per_expert_scale = {}, .hash_table = table};
  const std::vector<float> logits = logits_for(spec, 4);
  const Routed found = route(spec, tensors, logits, {4, 0, 2, 9});
  const std::vector<float> known(logits.begin(), logits.begin() + 36);
  const Routed expected = run_routing(spec, tensors, known, std::vector<int32_t>{4, 0, 2});
  for (size_t i = 0; i < expected.ids.size(); ++i) {
    EXPECT_EQ(found.ids[i], expected.ids[i]);
    EXPECT_NEAR(found.weights[i], expected.weights[i], 1e-6F * std::fabs(expected.weights[i]));
  }
  for (size_t i = 9; i < 12; ++i) {  // nobody has token id 9
    EXPECT_EQ(found.ids[i], 0);
    EXPECT_TRUE(std::isnan(found.weights[i]));
  }
}

TEST_F(DeviceRoutingTest, RoutesBySparsemixer) {
  RoutingSpec spec = spec_of(RouterScoring::kSoftmax, 16, 2);
  spec.method = RoutingMethod::kSparsemixer;
  const std::vector<float> logits = logits_for(spec);
  const Routed found = route(spec, {}, logits);
  const Routed expected = run_routing(spec, {}, logits);
  ASSERT_EQ(found.ids, expected.ids);
  for (size_t i = 0; i < expected.weights.size(); ++i)
    EXPECT_NEAR(found.weights[i], expected.weights[i], 1e-5F);
}

TEST_F(DeviceRoutingTest, BreaksTiesAndNaNsAsTheHostDoes) {
  const RoutingSpec spec = spec_of(RouterScoring::kSigmoid, 40, 5);
  std::vector<float> logits(40 * 4, 0.25F);
  logits[40 + 3] = NAN;
  logits[40 + 38] = 1.0F;
  for (size_t e = 80; e < 120; ++e)
    logits[e] = NAN;
  for (size_t e = 120; e < 160; ++e)
    logits[e] = -std::numeric_limits<float>::infinity();
  const Routed found = route(spec, {}, logits);
  const Routed expected = run_routing(spec, {}, logits);
  EXPECT_EQ(found.ids, expected.ids);
  for (size_t i = 0; i < expected.weights.size(); ++i)
    EXPECT_EQ(std::isnan(found.weights[i]), std::isnan(expected.weights[i])) << i;
}

TEST_F(DeviceRoutingTest, RoutesNoToken) {
  EXPECT_TRUE(route(spec_of(RouterScoring::kSoftmax, 8, 2), {}, {}).ids.empty());
}

}  // namespace
}  // namespace gantry::test
