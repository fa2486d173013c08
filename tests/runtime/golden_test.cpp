#include <gtest/gtest.h>

#include "runtime/verification.h"
#include "tests/support/golden_dirs.h"

// The oracle: what Hugging Face Transformers computed in f32 for every MoE block of tiny
// checkpoints of its own (tests/golden/README.md). Every family, every layout of ranks.

namespace gantry::test {
namespace {

class GoldenTest : public testing::TestWithParam<Golden> {
 protected:
  void expect_match(ParallelConfig parallel, Placement placement, ActivationDType activations,
                    IsaSet isas = host_isas()) {
    MoeModel model(GetParam().directory, /*names_only=*/false);
    ASSERT_TRUE(model.report().ok()) << summarize(model.report(), 10);
    const Reference reference =
        read_reference(GetParam().directory / "moe_io.safetensors", model.config());
    EXPECT_EQ(reference.blocks.size(), model.config().layers.size());
    for (const MoeLayerSpec& layer : model.config().layers) {
      const std::string reason = infeasible_reason(layer, parallel.tp_size, parallel.ep_size);
      if (!reason.empty()) GTEST_SKIP() << reason;
    }
    VerifySettings settings;
    settings.parallel = parallel;
    settings.placement = placement;
    settings.activations = activations;
    settings.isas = isas;
    settings.load.threads.count = 2;
    const VerifyResult result = verify_model(model, &reference, settings, {});
    EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
    EXPECT_EQ(result.blocks.size(), reference.blocks.size());
  }
};

TEST_P(GoldenTest, MatchesTransformersInF32) {
  expect_match({}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GoldenTest, MatchesTransformersInBf16) {
  expect_match({}, Placement::kLinear, ActivationDType::kBF16);
}

// The AMX kernel runs on any machine with its tiles in plain C++.
TEST_P(GoldenTest, MatchesInBf16OnEmulatedAmxTiles) {
  IsaSet isas = host_isas();
  isas.insert(Isa::kAmxEmulated);
  expect_match({}, Placement::kLinear, ActivationDType::kBF16, isas);
}

TEST_P(GoldenTest, MatchesInBf16OnAvx2) {
  expect_match({}, Placement::kLinear, ActivationDType::kBF16, detected_isas().capped(Isa::kAvx2));
}

TEST_P(GoldenTest, MatchesWithTwoTensorParallelRanks) {
  expect_match({.tp_size = 2}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GoldenTest, MatchesWithATensorParallelSizeThatDoesNotDivide) {
  expect_match({.tp_size = 5}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GoldenTest, MatchesWithTwoExpertParallelRanks) {
  expect_match({.ep_size = 2}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GoldenTest, MatchesWithExpertsDealtToThreeRanks) {
  expect_match({.ep_size = 3}, Placement::kRoundRobin, ActivationDType::kF32);
}

TEST_P(GoldenTest, MatchesWithTensorAndExpertParallelRanks) {
  expect_match({.tp_size = 2, .ep_size = 2}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GoldenTest, MatchesWithTwoTokenGroups) {
  expect_match({.tp_size = 2, .ep_size = 4, .dp_size = 2}, Placement::kRoundRobin,
               ActivationDType::kF32);
}

TEST_P(GoldenTest, MatchesInBf16WithTensorAndExpertParallelRanks) {
  expect_match({.tp_size = 3, .ep_size = 3}, Placement::kLinear, ActivationDType::kBF16);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, testing::ValuesIn(family_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
