// What a user is told about a scale that cannot be right, and what --allow makes of it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "kernels/base/log.h"
#include "runtime/verification.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

constexpr const char* kExpert = "model.layers.0.block_sparse_moe.experts.2.w1.";

/// ModelOpt's NVFP4: two levels of scales, and scales of inputs.
class ScaleFindingsTest : public testing::Test {
 protected:
  void put_f32(const std::string& suffix, float value) {
    std::memcpy(checkpoint.tensors.at(kExpert + suffix).bytes.data(), &value, 4);
  }

  /// The findings of a whole load on two TP ranks, which both read every scale.
  std::vector<Finding> findings(const std::vector<FindingKind>& allow = {}) {
    set_log_sink([this](LogLevel level, std::string_view) { warned += level == LogLevel::kWarn; });
    checkpoint.write(dir.path());
    MoeModel model(dir.path(), /*names_only=*/false);
    for (const FindingKind kind : allow)
      model.report().allow(kind);
    if (model.report().ok()) {
      VerifySettings settings;
      settings.parallel = {.tp_size = 2};
      settings.load.threads.count = 1;
      verify_model(model, nullptr, settings, {});
    }
    set_log_sink({});
    return model.report().findings();
  }

  void expect_one(FindingKind kind, const std::string& suffix, int64_t element,
                  const std::string& found) {
    const std::vector<Finding> all = findings();
    ASSERT_EQ(all.size(), 1U);
    const Finding& f = all[0];
    EXPECT_EQ(to_string(f.kind), to_string(kind));
    EXPECT_EQ(f.layer, 0);
    EXPECT_EQ(f.expert, 2);
    EXPECT_EQ(f.part, "w1");
    EXPECT_EQ(f.tensor, kExpert + suffix);
    EXPECT_EQ(f.file, "model.safetensors");
    EXPECT_EQ(f.element, element);
    for (const std::string& part :
         {f.tensor, std::string("layer 0"), std::string("expert 2"), f.file, found}) {
      EXPECT_NE(f.message.find(part), std::string::npos) << part << " in: " << f.message;
    }
  }

  MutableCheckpoint checkpoint =
      MutableCheckpoint::read(golden_root() / "quant" / "modelopt-nvfp4-mixtral");
  const TempDir dir;
  int warned = 0;
};

TEST_F(ScaleFindingsTest, AnIntactCheckpointHasNone) { EXPECT_TRUE(findings().empty()); }

TEST_F(ScaleFindingsTest, AZeroBlockScale) {
  checkpoint.tensors.at(std::string(kExpert) + "weight_scale").bytes[37] = std::byte{0};
  expect_one(FindingKind::kZeroScale, "weight_scale", 37, "element [2, 5] of [128, 16]");
}

TEST_F(ScaleFindingsTest, ANegativeBlockScale) {
  checkpoint.tensors.at(std::string(kExpert) + "weight_scale").bytes[0] |= std::byte{0x80};
  expect_one(FindingKind::kNegativeScale, "weight_scale", 0, "expected a positive number");
}

TEST_F(ScaleFindingsTest, ANanBlockScaleIsSaidOnceAndByName) {
  checkpoint.tensors.at(std::string(kExpert) + "weight_scale").bytes[16] = std::byte{0x7f};
  expect_one(FindingKind::kNonFinite, "weight_scale", 16, "[1, 0]");
}

TEST_F(ScaleFindingsTest, AGlobalScaleThatWasNotWritten) {
  put_f32("weight_scale_2", 0.0F);
  expect_one(FindingKind::kZeroScale, "weight_scale_2", 0, "found 0");
}

TEST_F(ScaleFindingsTest, BlockScalesThatUnderflowed) {
  for (std::byte& scale : checkpoint.tensors.at(std::string(kExpert) + "weight_scale").bytes)
    scale = std::byte{1};  // 2^-9, the smallest number of e4m3
  expect_one(FindingKind::kUnderflowScale, "weight_scale", 0, "2048 in all");
}

TEST_F(ScaleFindingsTest, AnInputScaleThatWasNotCalibrated) {
  put_f32("input_scale", 0.0F);
  expect_one(FindingKind::kInputScale, "input_scale", 0, "found 0");
}

TEST_F(ScaleFindingsTest, AMissingInputScaleIsOneOfItsKind) {
  checkpoint.tensors.erase(std::string(kExpert) + "input_scale");
  const std::vector<Finding> all = findings();
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0].kind, FindingKind::kInputScale);
  EXPECT_EQ(all[0].expert, 2);
  EXPECT_NE(all[0].message.find("input_scale"), std::string::npos);
  EXPECT_TRUE(findings({FindingKind::kInputScale}).empty());
}

TEST_F(ScaleFindingsTest, AMissingWeightScaleCannotBeAllowed) {
  checkpoint.tensors.erase(std::string(kExpert) + "weight_scale");
  const std::vector<Finding> all = findings({FindingKind::kInputScale, FindingKind::kZeroScale});
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all[0].kind, FindingKind::kMissing);
}

TEST_F(ScaleFindingsTest, AScaleThatNoExpertHasIsNamed) {
  for (auto tensor = checkpoint.tensors.begin(); tensor != checkpoint.tensors.end();) {
    tensor = tensor->first.ends_with("weight_scale_2") ? checkpoint.tensors.erase(tensor)
                                                       : std::next(tensor);
  }
  const std::vector<Finding> all = findings();
  const auto missing = std::count_if(
      all.begin(), all.end(), [](const Finding& f) { return f.kind == FindingKind::kMissing; });
  EXPECT_EQ(missing, 12);  // one a matrix; beside it, what was therefore not written
  EXPECT_NE(all[0].message.find("weight_scale_2"), std::string::npos) << all[0].message;
}

TEST_F(ScaleFindingsTest, AllowMakesOfThemALoggedWarningAndLoads) {
  put_f32("input_scale", -1.0F);
  EXPECT_EQ(findings().size(), 1U);
  warned = 0;
  EXPECT_TRUE(findings({FindingKind::kInputScale}).empty());
  EXPECT_EQ(warned, 1);
  EXPECT_EQ(findings({FindingKind::kZeroScale}).size(), 1U);
}

TEST_F(ScaleFindingsTest, LoadOptionsAllowToo) {
  checkpoint.tensors.at(std::string(kExpert) + "weight_scale").bytes[37] = std::byte{0};
  checkpoint.write(dir.path());
  MoeModel model(dir.path(), /*names_only=*/false);
  VerifySettings settings;
  settings.load.threads.count = 1;
  settings.load.allow = {FindingKind::kZeroScale};
  verify_model(model, nullptr, settings, {});
  EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 3);
  ASSERT_EQ(model.report().warnings().size(), 1U);
  EXPECT_EQ(model.report().warnings()[0].kind, FindingKind::kZeroScale);
}

}  // namespace
}  // namespace gantry::test
