// What validate() and topk_routing() refuse, and that the message names the field.

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/topk/topk_routing.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

RoutingSpec good_spec() {
  RoutingSpec spec;
  spec.num_experts = 12;
  spec.top_k = 4;
  return spec;
}

RoutingSpec grouped_spec(GroupScore score, int num_groups, int topk_group) {
  RoutingSpec spec = good_spec();
  spec.group_score = score;
  spec.num_groups = num_groups;
  spec.topk_group = topk_group;
  return spec;
}

struct BadSpec {
  const char* name;
  std::function<void(RoutingSpec&)> spoil;
  std::string field;
};

void PrintTo(const BadSpec& bad, std::ostream* out) { *out << bad.name; }

class BadRoutingSpecTest : public testing::TestWithParam<BadSpec> {};

TEST_P(BadRoutingSpecTest, IsRefusedByTheNameOfItsField) {
  RoutingSpec spec = good_spec();
  ASSERT_NO_THROW(validate(spec, {}));
  GetParam().spoil(spec);
  expect_error([&] { validate(spec, {}); }, ErrorCode::kInvalidArgument, {GetParam().field});
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadRoutingSpecTest,
    testing::Values(
        BadSpec{"NoExperts", [](auto& s) { s.num_experts = 0; }, "num_experts"},
        BadSpec{"NegativeExperts", [](auto& s) { s.num_experts = -3; }, "num_experts"},
        BadSpec{"NoTopK", [](auto& s) { s.top_k = 0; }, "top_k"},
        BadSpec{"MoreThanTheExperts", [](auto& s) { s.top_k = 13; }, "top_k"},
        BadSpec{"OnlyZeroExperts", [](auto& s) { s.num_zero_experts = 12; }, "num_zero_experts"},
        BadSpec{"NegativeZeroExperts", [](auto& s) { s.num_zero_experts = -1; },
                "num_zero_experts"},
        BadSpec{"NegativeFusedShared", [](auto& s) { s.num_fused_shared_experts = -1; },
                "num_fused_shared_experts"},
        BadSpec{"SparsemixerOfFour", [](auto& s) { s.method = RoutingMethod::kSparsemixer; },
                "top_k"},
        BadSpec{"CustomWithoutCallback", [](auto& s) { s.method = RoutingMethod::kCustom; },
                "custom"},
        BadSpec{"HashWithoutTable", [](auto& s) { s.method = RoutingMethod::kHash; }, "hash_table"},
        BadSpec{"NoGroups", [](auto& s) { s = grouped_spec(GroupScore::kMax, 0, 1); },
                "num_groups"},
        BadSpec{"GroupsOfDifferentSizes", [](auto& s) { s = grouped_spec(GroupScore::kMax, 5, 2); },
                "num_groups"},
        BadSpec{"NoKeptGroup", [](auto& s) { s = grouped_spec(GroupScore::kMax, 3, 0); },
                "topk_group"},
        BadSpec{"TooManyKeptGroups", [](auto& s) { s = grouped_spec(GroupScore::kMax, 3, 4); },
                "topk_group"},
        BadSpec{"KeptGroupsTooSmall", [](auto& s) { s = grouped_spec(GroupScore::kMax, 6, 1); },
                "top_k"},
        BadSpec{"TopTwoOfGroupsOfOne",
                [](auto& s) { s = grouped_spec(GroupScore::kTopTwoSum, 12, 6); }, "num_groups"},
        BadSpec{"UnevenTopKOfEach",
                [](auto& s) { s = grouped_spec(GroupScore::kTopKOfEach, 3, 1); }, "top_k"}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(RoutingTensorSizeTest, BiasHasOneValueAnExpert) {
  const std::vector<float> bias(11);
  expect_error(
      [&] {
        validate(good_spec(), {bias, {}, {}});
      },
      ErrorCode::kInvalidArgument, {"correction_bias", "11"});
}

TEST(RoutingTensorSizeTest, ScaleHasOneValueARealExpert) {
  RoutingSpec spec = good_spec();
  spec.num_zero_experts = 4;
  const std::vector<float> scale(8);
  EXPECT_NO_THROW(validate(spec, {{}, scale, {}}));
  spec.num_zero_experts = 3;
  expect_error(
      [&] {
        validate(spec, {{}, scale, {}});
      },
      ErrorCode::kInvalidArgument, {"per_expert_scale", "8"});
}

TEST(RoutingTensorSizeTest, HashTableHasWholeRows) {
  RoutingSpec spec = good_spec();
  spec.method = RoutingMethod::kHash;
  const std::vector<int32_t> table(10);
  expect_error(
      [&] {
        validate(spec, {{}, {}, table});
      },
      ErrorCode::kInvalidArgument, {"hash_table", "10"});
}

// Buffers of 2 tokens; each test makes one of them wrong.
class RoutingBufferTest : public testing::Test {
 protected:
  void expect_refused(std::string_view name) {
    expect_error(
        [&] { topk_routing(spec, tensors, logits, token_ids, ids, weights, identity, scratch); },
        ErrorCode::kInvalidArgument, {name});
  }

  RoutingSpec spec = good_spec();
  std::vector<int32_t> table = std::vector<int32_t>(4);
  RoutingTensors tensors;
  std::vector<float> logits = std::vector<float>(24);
  std::vector<int32_t> token_ids;
  std::vector<int32_t> ids = std::vector<int32_t>(8);
  std::vector<float> weights = std::vector<float>(8);
  std::vector<float> identity;
  TopkScratch scratch;
};

TEST_F(RoutingBufferTest, RefusesAPartOfAToken) {
  logits.resize(25);
  expect_refused("logits");
}

TEST_F(RoutingBufferTest, RefusesIdsOfAnotherSize) {
  ids.resize(7);
  expect_refused("topk_ids");
}

TEST_F(RoutingBufferTest, RefusesWeightsWithoutRoomForSharedExperts) {
  spec.num_fused_shared_experts = 1;
  ids.resize(10);
  expect_refused("topk_weights");
}

TEST_F(RoutingBufferTest, RefusesAHashWithoutTokenIds) {
  spec.method = RoutingMethod::kHash;
  tensors.hash_table = table;
  expect_refused("token_ids");
}

TEST_F(RoutingBufferTest, RefusesZeroExpertsWithoutIdentityWeights) {
  spec.num_zero_experts = 2;
  expect_refused("identity_weights");
}

}  // namespace
}  // namespace gantry::test
