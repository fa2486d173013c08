// Quantized activations as real exporters' checkpoints declare them, against `output_act_quant`
// (tests/golden/README.md): on one rank, on several, and with input scales that are damaged.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>
#include <utility>

#include "kernels/base/error.h"
#include "kernels/base/float_convert.h"
#include "loader/input_scale_job.h"
#include "runtime/verification.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

// The goldens with quantized activations.
std::vector<Golden> scheme_goldens() {
  std::vector<Golden> goldens;
  for (const Golden& golden : quant_goldens()) {
    const SafetensorsFile file(golden.directory / "moe_io.safetensors");
    const auto& tensors = file.header().tensors;
    if (std::any_of(tensors.begin(), tensors.end(), [](const TensorInfo& tensor) {
          return tensor.name.ends_with(".output_act_quant");
        })) {
      goldens.push_back(golden);
    }
  }
  return goldens;
}

// Among them one with pre_quant_scale, whose inputs are scaled and then used as they are.
TEST(WeightOnlyGoldenTest, DeclaresAndRefusesNothing) {
  const std::vector<Golden> declared = scheme_goldens();
  int checked = 0;
  for (const Golden& golden : quant_goldens()) {
    if (std::any_of(declared.begin(), declared.end(),
                    [&](const Golden& one) { return one.directory == golden.directory; })) {
      continue;
    }
    const MoeModel model(golden.directory, /*names_only=*/false);
    const ActivationScheme scheme = model_activations(model.config(), model.tensors());
    if (scheme.refusal.find("its exporter writes no scale") != std::string::npos) continue;
    EXPECT_FALSE(scheme.declared()) << golden.directory;
    EXPECT_EQ(scheme.refusal, "") << golden.directory;
    ++checked;
  }
  EXPECT_GT(checked, 0);
}

class ActivationGoldenTest : public testing::TestWithParam<Golden> {
 protected:
  ActivationGoldenTest()
      : model(GetParam().directory, /*names_only=*/false),
        reference(read_reference(GetParam().directory / "moe_io.safetensors", model.config())) {}

  std::vector<float> run(const ParallelConfig& parallel, Placement placement,
                         ActivationDType activations = ActivationDType::kScheme) {
    FusedMoeOptions options;
    options.activations = activations;
    options.threads.count = 2;
    LoadOptions load;
    load.threads.count = 2;
    const ReferenceBlock& block = reference.blocks.begin()->second;
    const LayerBatch batch{block.input, reference.token_ids, block.router_input};
    const auto results = run_layer_on_ranks(model, reference.blocks.begin()->first, parallel,
                                            placement, load, options, &batch);
    EXPECT_EQ(summarize(model.report(), 5), "");
    return gather_outputs(results, parallel);
  }

  // Where no rounding flips (see scheme_tolerance) the whole block agrees as f32 sums do. One in
  // some thousand values may flip, which shows in its token alone: in 24 tokens of 256 values at
  // most 3, and they stay within the limit that verify uses. Any mistake shows in all tokens.
  void expect_match(const std::vector<float>& y, const std::string& what) {
    const ReferenceBlock& block = reference.blocks.begin()->second;
    const std::vector<float>& expected = block.output_act_quant;
    ASSERT_EQ(y.size(), expected.size());
    const MoeLayerSpec& spec = model.config().layers.front();
    const auto h = static_cast<size_t>(spec.hidden_size);
    const size_t num_tokens = expected.size() / h;
    size_t flipped = 0;
    for (size_t t = 0; t < num_tokens; ++t) {
      const auto rows = [&](const std::vector<float>& all) {
        return std::vector(all.begin() + static_cast<ptrdiff_t>(t * h),
                           all.begin() + static_cast<ptrdiff_t>((t + 1) * h));
      };
      flipped += relative_error(rows(y), rows(expected)) > 1e-5 ? 1 : 0;
    }
    const RowFormat format = model_activations(model.config(), model.tensors()).format;
    const double error = relative_error(y, expected);
    std::printf("%-46s %-8s %-34s %.2e, %zu of %zu tokens with a flip\n", GetParam().name.c_str(),
                what.c_str(), std::string(to_string(format.kind)).c_str(), error, flipped,
                num_tokens);
    EXPECT_LE(flipped, 3U);
    const auto values = static_cast<int64_t>(num_tokens) * spec.routing.top_k;
    EXPECT_LE(error, scheme_tolerance(format, values * spec.intermediate_size));
  }

  MoeModel model;
  Reference reference;
};

TEST_P(ActivationGoldenTest, MatchesOnOneRank) { expect_match(run({}, Placement::kLinear), "1"); }

// The oracle can tell: without the quantization the same block is far off.
TEST_P(ActivationGoldenTest, PlainActivationsAreBeyondTheLimit) {
  const ReferenceBlock& block = reference.blocks.begin()->second;
  const MoeLayerSpec& spec = model.config().layers.front();
  const auto values = static_cast<int64_t>(block.input.size()) / spec.hidden_size *
                      spec.routing.top_k * spec.intermediate_size;
  const double limit =
      scheme_tolerance(model_activations(model.config(), model.tensors()).format, values);
  EXPECT_GT(
      relative_error(run({}, Placement::kLinear, ActivationDType::kF32), block.output_act_quant),
      2 * limit);
}

TEST_P(ActivationGoldenTest, MatchesOnTwoTensorParallelRanks) {
  expect_match(run({.tp_size = 2}, Placement::kLinear), "tp 2");
}

// 128 columns on three ranks cut groups of 16, 32 and 128.
TEST_P(ActivationGoldenTest, MatchesOnThreeTensorParallelRanksThatCutGroups) {
  expect_match(run({.tp_size = 3}, Placement::kLinear), "tp 3");
}

TEST_P(ActivationGoldenTest, MatchesOnFourTensorParallelRanks) {
  expect_match(run({.tp_size = 4}, Placement::kLinear), "tp 4");
}

// Experts are whole: the bits of one rank, but for the order of their sum.
TEST_P(ActivationGoldenTest, MatchesOnTwoExpertParallelRanks) {
  expect_match(run({.ep_size = 2}, Placement::kLinear), "ep 2");
}

TEST_P(ActivationGoldenTest, MatchesOnThreeExpertParallelRanks) {
  expect_match(run({.ep_size = 3}, Placement::kRoundRobin), "ep 3");
}

// EP groups hold different numbers of rows while TP ranks exchange magnitudes.
TEST_P(ActivationGoldenTest, MatchesOnTensorAndExpertParallelRanksWithTwoTokenGroups) {
  expect_match(run({.tp_size = 3, .ep_size = 4, .dp_size = 2}, Placement::kLinear), "tp 3 ep 4");
}

TEST_P(ActivationGoldenTest, VerifyTakesTheReferenceOfTheScheme) {
  VerifySettings settings;
  settings.activations = ActivationDType::kScheme;
  settings.load.threads.count = 2;
  const VerifyResult result = verify_model(model, &reference, settings, {});
  ASSERT_EQ(result.blocks.size(), 1U);
  EXPECT_TRUE(result.blocks[0].ok()) << result.blocks[0].error;
  EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 5);
  reference.blocks.begin()->second.output_act_quant.clear();
  expect_error([&] { verify_model(model, &reference, settings, {}); }, ErrorCode::kInvalidArgument,
               {"output_act_quant"});
}

INSTANTIATE_TEST_SUITE_P(Exporters, ActivationGoldenTest, testing::ValuesIn(scheme_goldens()),
                         [](const auto& golden) { return golden.param.name; });

// ---- input scales that are damaged --------------------------------------------------------------

class InputScaleTest : public testing::TestWithParam<const char*> {
 protected:
  InputScaleTest() : checkpoint(MutableCheckpoint::read(golden_root() / "quant" / GetParam())) {}

  // The input scale of one projection of expert 1.
  std::string scale_name(const std::string& projection) const {
    for (const auto& [name, tensor] : checkpoint.tensors) {
      if (name.find(".experts.1." + projection + ".input_") != std::string::npos) return name;
    }
    ADD_FAILURE() << "no input scale of " << projection;
    return "";
  }
  std::string first_scale() const {
    for (const auto& [name, tensor] : checkpoint.tensors) {
      if (name.find(".experts.1.") != std::string::npos &&
          name.find(".input_") != std::string::npos) {
        return name;
      }
    }
    ADD_FAILURE() << "no input scale";
    return "";
  }
  float scale_value(const std::string& name) const {
    const MutableCheckpoint::Tensor& tensor = checkpoint.tensors.at(name);
    return load_as_f32(tensor.bytes.data(), tensor.dtype, 0);
  }
  void set_scale(const std::string& name, float value) {
    MutableCheckpoint::Tensor& tensor = checkpoint.tensors.at(name);
    tensor.dtype = DType::kF32;
    tensor.bytes.resize(sizeof(value));
    std::memcpy(tensor.bytes.data(), &value, sizeof(value));
  }

  // What loading finds wrong; "" if nothing.
  std::string findings() const {
    const TempDir dir;
    checkpoint.write(dir.path());
    MoeModel model(dir.path(), /*names_only=*/false);
    VerifySettings settings;
    settings.load.threads.count = 1;
    if (model.report().ok()) verify_model(model, nullptr, settings, {});
    return summarize(model.report(), 10);
  }
  void expect_finding(const std::string& name, const std::string& text) const {
    const std::string found = findings();
    EXPECT_NE(found.find(name), std::string::npos) << found;
    EXPECT_NE(found.find(text), std::string::npos) << found;
    EXPECT_NE(found.find("expert 1"), std::string::npos) << found;
  }

  MutableCheckpoint checkpoint;
};

TEST_P(InputScaleTest, LoadsAsItIs) { EXPECT_EQ(findings(), ""); }

// The other experts have one.
TEST_P(InputScaleTest, ThatOneExpertLacksIsAFinding) {
  checkpoint.tensors.erase(first_scale());
  expect_finding("[input_scale]", "input_");
}

// No expert has one, so none differs from its siblings.
TEST_P(InputScaleTest, ThatEveryExpertLacksIsAFinding) {
  const std::string name = first_scale();
  std::erase_if(checkpoint.tensors,
                [](const auto& entry) { return entry.first.find(".input_") != std::string::npos; });
  expect_finding(name.substr(0, name.rfind('.')), "is missing, and inputs are");
}

TEST_P(InputScaleTest, ThatIsNotAPositiveNumberIsAFinding) {
  for (const float bad : {0.0F, -0.5F, std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    set_scale(first_scale(), bad);
    expect_finding(first_scale(), "expected a positive scale");
  }
}

TEST_P(InputScaleTest, ThatIsAVectorIsAFinding) {
  const std::string name = first_scale();
  set_scale(name, 0.5F);
  MutableCheckpoint::Tensor& tensor = checkpoint.tensors.at(name);
  tensor.shape = {2};
  tensor.bytes.resize(8);
  expect_finding(name, "expected one float");
}

TEST_P(InputScaleTest, ThatIsNotAFloatIsAFinding) {
  const std::string name = first_scale();
  set_scale(name, 0.5F);
  checkpoint.tensors.at(name).dtype = DType::kI32;
  expect_finding(name, "expected one float");
}

TEST_P(InputScaleTest, WithAZeroPointThatIsNotZeroIsAFinding) {
  const MutableCheckpoint intact = checkpoint;
  for (const auto& [name, tensor] : intact.tensors) {
    if (name.find(".input_") == std::string::npos) continue;
    checkpoint.tensors[name.substr(0, name.rfind('.')) + ".input_zero_point"] = {
        DType::kI8, {}, {std::byte{0}}};
  }
  EXPECT_EQ(findings(), "");
  const std::string name = first_scale();
  const std::string zero_point = name.substr(0, name.rfind('.')) + ".input_zero_point";
  checkpoint.tensors.at(zero_point).bytes[0] = std::byte{3};
  expect_finding(zero_point, "zero point");
}

// Every expert but one gets another scale of up; what comes out is PyTorch's
// (activations/up_scales.safetensors). On ranks that hold no such expert, too.
TEST_P(InputScaleTest, ThatDiffersBetweenGateAndUpCounts) {
  const std::string golden = GetParam();
  const SafetensorsFile edited(golden_root() / "activations" / "up_scales.safetensors");
  const auto read = [&](const std::string& name) {
    const TensorInfo* info = edited.find(golden + name);
    std::vector<float> values(info == nullptr ? 0 : static_cast<size_t>(info->num_elements()));
    if (info != nullptr) edited.read(info->begin, values.data(), info->num_bytes());
    return values;
  };
  const std::vector<float> scales = read(".up_scales");
  ASSERT_EQ(scales.size(), 4U);
  for (auto& [name, tensor] : checkpoint.tensors) {
    if (name.find(".input_") == std::string::npos) continue;
    for (size_t e = 0; e < scales.size(); ++e) {
      const std::string expert = ".experts." + std::to_string(e);
      if (name.find(expert + ".up_proj.") != std::string::npos ||
          name.find(expert + ".w3.") != std::string::npos) {
        set_scale(name, scales[e]);
      }
    }
  }
  EXPECT_EQ(findings(), "");
  const TempDir dir;
  checkpoint.write(dir.path());
  const std::filesystem::path io = golden_root() / "quant" / GetParam() / "moe_io.safetensors";
  for (const ParallelConfig parallel :
       {ParallelConfig{}, ParallelConfig{.tp_size = 2}, ParallelConfig{.tp_size = 3},
        ParallelConfig{.tp_size = 4}, ParallelConfig{.ep_size = 2}, ParallelConfig{.ep_size = 3}}) {
    SCOPED_TRACE(describe(parallel));
    MoeModel model(dir.path(), /*names_only=*/false);
    Reference reference = read_reference(io, model.config());
    std::vector<float>& expected = reference.blocks.begin()->second.output_act_quant;
    const std::vector<float> as_exported = std::exchange(expected, read(".output_act_quant"));
    ASSERT_EQ(expected.size(), as_exported.size());
    VerifySettings settings;
    settings.load.threads.count = 1;
    settings.parallel = parallel;
    settings.activations = ActivationDType::kScheme;
    EXPECT_TRUE(verify_model(model, &reference, settings, {}).blocks.at(0).ok());
    expected = as_exported;  // the oracle can tell
    EXPECT_FALSE(verify_model(model, &reference, settings, {}).blocks.at(0).ok());
  }
}

// The scales of every expert count. A finer one saturates.
TEST_P(InputScaleTest, ThatIsAnotherOneIsNoticedByTheReference) {
  const MutableCheckpoint intact = checkpoint;
  const std::filesystem::path io = golden_root() / "quant" / GetParam() / "moe_io.safetensors";
  int tried = 0;
  for (const std::string down : {"w2", "down_proj"}) {
    for (const std::string expert : {"0", "1", "2", "3"}) {
      checkpoint = intact;
      std::string damaged;
      for (auto& [name, tensor] : checkpoint.tensors) {
        if (name.find(".experts." + expert + "." + down + ".input_") == std::string::npos) continue;
        damaged = name;
      }
      if (damaged.empty()) continue;
      const bool divisor = damaged.ends_with("input_global_scale");
      set_scale(damaged, scale_value(damaged) * (divisor ? 16.0F : 1.0F / 16.0F));
      ++tried;
      const TempDir dir;
      checkpoint.write(dir.path());
      MoeModel model(dir.path(), /*names_only=*/false);
      const Reference reference = read_reference(io, model.config());
      VerifySettings settings;
      settings.load.threads.count = 1;
      settings.activations = ActivationDType::kScheme;
      verify_model(model, &reference, settings, {});
      EXPECT_FALSE(model.report().ok()) << damaged;
    }
  }
  EXPECT_EQ(tried, 4);
}

INSTANTIATE_TEST_SUITE_P(Exporters, InputScaleTest,
                         testing::Values("quark-fp8", "llmcompressor-nvfp4",
                                         "modelopt-nvfp4-mixtral"),
                         [](const auto& tested) {
                           std::string name = tested.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace gantry::test
