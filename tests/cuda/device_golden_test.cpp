#include <gtest/gtest.h>

#include "loader/weight_loader.h"
#include "runtime/verification.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/test_device.h"

// The layer on a GPU against what Transformers computed. On a machine without one the same kernels
// run on emulated threads.

namespace gantry::test {
namespace {

class DeviceGoldenTest : public testing::TestWithParam<Golden> {
 protected:
  void SetUp() override {
    device = test_device();
    if (device == nullptr) GTEST_SKIP() << no_device_reason();
  }

  void expect_match(const DeviceMoeOptions& options) {
    MoeModel model(GetParam().directory, /*names_only=*/false);
    ASSERT_TRUE(model.report().ok()) << summarize(model.report(), 10);
    const Reference reference =
        read_reference(GetParam().directory / "moe_io.safetensors", model.config());
    VerifySettings settings;
    settings.activations = ActivationDType::kBF16;
    settings.load.threads.count = 2;
    settings.ranks.device = device;
    settings.ranks.device_options = options;
    const VerifyResult result = verify_model(model, &reference, settings, {});
    EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
    EXPECT_EQ(result.blocks.size(), reference.blocks.size());
  }

  std::shared_ptr<Device> device;
};

TEST_P(DeviceGoldenTest, MatchesTheReferenceInBf16) { expect_match({}); }

INSTANTIATE_TEST_SUITE_P(Families, DeviceGoldenTest, testing::ValuesIn(family_goldens()),
                         [](const auto& golden) { return golden.param.name; });
INSTANTIATE_TEST_SUITE_P(Quantized, DeviceGoldenTest, testing::ValuesIn(quant_goldens()),
                         [](const auto& golden) { return golden.param.name; });
INSTANTIATE_TEST_SUITE_P(Gguf, DeviceGoldenTest, testing::ValuesIn(gguf_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
