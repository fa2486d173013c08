// Checkpoints by `gantry synth` in every format: they load completely into the kernels' format,
// their weights are normal numbers of deviation 1/sqrt(in), and their layers compute.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <tuple>

#include "kernels/base/error.h"
#include "runtime/moe_model.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"
#include "tools/export_formats.h"
#include "tools/synth_plan.h"

namespace gantry::test {
namespace {

using Json = nlohmann::ordered_json;

// A model's names and config with smaller sizes, which divide as its own do.
struct Cut {
  std::string shape;
  int64_t hidden;
  int64_t intermediate;
  int experts;
  bool fits_128;  // groups of 128
};

void PrintTo(const Cut& cut, std::ostream* os) { *os << cut.shape; }

cli::SynthShape find_shape(const std::string& name) {
  for (cli::SynthShape& shape : cli::synth_shapes()) {
    if (shape.name == name) return shape;
  }
  throw std::invalid_argument(name);
}

Json cut_config(const cli::SynthShape& shape, const Cut& cut, int layers) {
  Json config = shape.config;
  cli::resize(config, layers, cut.experts);
  Json& decoder = config.contains("text_config") ? config["text_config"] : config;
  decoder["hidden_size"] = cut.hidden;
  for (const char* key :
       {"intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"}) {
    if (decoder.contains(key)) decoder[key] = cut.intermediate;
  }
  return config;
}

WeightFormat expected_format(const std::string& format) {
  using enum WeightElement;
  if (format == "bf16") return {};
  if (format == "fp8-block") return {.element = kE4M3, .scale = ScaleType::kF32, .group = 128};
  if (format == "fp8-channel" || format == "fp8-tensor" || format == "fp8-static")
    return {.element = kE4M3, .output_scale = true};
  if (format == "int8") return {.element = kInt8, .output_scale = true};
  if (format == "int8-g128") return {.element = kInt8, .scale = ScaleType::kBF16, .group = 128};
  if (format == "gptq-int8") return {.element = kInt8, .scale = ScaleType::kF16, .group = 128};
  if (format == "gptq") return {.element = kInt4, .scale = ScaleType::kF16, .group = 128};
  if (format == "mxfp8") return {.element = kE4M3, .scale = ScaleType::kE8M0, .group = 32};
  if (format == "int4-g128") return {.element = kInt4, .scale = ScaleType::kBF16, .group = 128};
  if (format == "int4-g32") return {.element = kInt4, .scale = ScaleType::kBF16, .group = 32};
  if (format == "int4-awq") return {.element = kInt4, .scale = ScaleType::kF32, .group = 128};
  if (format.starts_with("mxfp4"))
    return {.element = kE2M1, .scale = ScaleType::kE8M0, .group = 32};
  if (format.starts_with("nvfp4")) {
    return {.element = kE2M1, .scale = ScaleType::kE4M3, .group = 16, .output_scale = true};
  }
  const ScaleType scale = format == "gptq-asym" ? ScaleType::kF16 : ScaleType::kBF16;
  return {.element = kInt4, .scale = scale, .group = 128, .zero_points = true};
}

struct Moments {
  double mean = 0.0;
  double rms = 0.0;
  double largest = 0.0;
};

Moments moments_of(const std::vector<float>& values) {
  Moments moments;
  for (const float value : values) {
    moments.mean += value;
    moments.rms += static_cast<double>(value) * value;
    moments.largest = std::max(moments.largest, std::fabs(static_cast<double>(value)));
  }
  const auto count = static_cast<double>(values.size());
  moments.mean /= count;
  moments.rms = std::sqrt(moments.rms / count);
  return moments;
}

// Misread nibbles, zero points, scales or orders of magnitude move these by far more: a zero point
// that is off by one moves the mean by more than a third of the deviation.
void expect_normal(const std::vector<float>& weights, int64_t in) {
  const double deviation = 1.0 / std::sqrt(static_cast<double>(in));
  const Moments moments = moments_of(weights);
  EXPECT_NEAR(moments.rms / deviation, 1.0, 0.15);
  EXPECT_NEAR(moments.mean / deviation, 0.0, 0.05);
  EXPECT_GT(moments.largest / deviation, 2.0);
  EXPECT_LT(moments.largest / deviation, 8.0);
}

void write(const cli::SynthPlan& plan, const TempDir& dir, uint64_t seed, int threads) {
  cli::write_synth(plan, dir.path(), seed, {.count = threads, .executor = {}}, [](int64_t) {});
}

class SynthTest : public testing::TestWithParam<std::tuple<Cut, std::string>> {
 protected:
  SynthTest()
      : cut(std::get<0>(GetParam())),
        format(std::get<1>(GetParam())),
        shape(find_shape(cut.shape)),
        fits(cut.fits_128 || expected_format(format).group != 128 || format == "fp8-block") {}

  [[nodiscard]] cli::SynthPlan plan(int layers = 1) const {
    return cli::plan_synth(shape, cut_config(shape, cut, layers), format);
  }

  const Cut cut;
  const std::string format;
  const cli::SynthShape shape;
  const bool fits;
  SeededRng rng;
};

TEST_P(SynthTest, LoadsAndComputes) {
  if (!fits) {
    expect_error([&] { static_cast<void>(plan()); }, ErrorCode::kInvalidArgument,
                 {format, "groups of 128"});
    return;
  }
  const TempDir dir;
  constexpr int kLayers = 2;
  write(plan(kLayers), dir, rng.seed(), 2);
  MoeModel names(dir.path(), /*names_only=*/true);
  EXPECT_TRUE(names.report().ok()) << summarize(names.report(), 10);
  MoeModel model(dir.path(), /*names_only=*/false);
  ASSERT_TRUE(model.report().ok()) << summarize(model.report(), 10);
  ASSERT_EQ(model.config().layers.size(), static_cast<size_t>(kLayers));
  EXPECT_EQ(model.config().quant.has_value(), format != "bf16");

  const MoeLayerSpec& spec = model.config().layers[1];
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  LoadStats stats;
  LoadOptions load;
  load.threads.count = 2;
  const MoeLayerWeights weights =
      loader.load_layer(spec.layer, {}, ExpertMap::create(spec.num_experts, 1, Placement::kLinear),
                        load, model.report(), stats);
  ASSERT_TRUE(model.report().ok()) << summarize(model.report(), 10);
  EXPECT_EQ(weights.layout.w13_panels.format, expected_format(format));
  EXPECT_EQ(weights.layout.w2_panels.format, expected_format(format));
  EXPECT_EQ(weights.layout.bias, cut.shape == "gpt-oss-20b");
  for (int64_t slot = 0; slot < weights.num_slots; ++slot) {
    SCOPED_TRACE(slot);
    const std::byte* bytes = weights.slots.data() + slot * weights.layout.stride_bytes;
    expect_normal(read_w13(weights.layout, bytes), cut.hidden);
    expect_normal(read_w2(weights.layout, bytes), cut.intermediate);
  }

  const std::vector<float> hidden = rng.normals(static_cast<size_t>(5 * cut.hidden));
  const LayerBatch batch{.hidden_states = hidden};
  for (const ActivationDType activations : {ActivationDType::kF32, ActivationDType::kBF16}) {
    FusedMoeOptions options;
    options.activations = activations;
    options.threads.count = 2;
    const auto results =
        run_layer_on_ranks(model, spec.layer, {}, Placement::kLinear, load, options, &batch);
    const Moments out = moments_of(results[0].out);
    EXPECT_TRUE(std::isfinite(out.rms)) << "seed " << rng.seed();
    // silu(N(0, 1)) * N(0, 1) has a root mean square of 0.6, and of 1.4 as gpt-oss has it; the
    // average over K experts lowers it.
    EXPECT_GT(out.rms, 0.1) << "seed " << rng.seed();
    EXPECT_LT(out.rms, 2.0) << "seed " << rng.seed();
  }
}

std::vector<std::string> format_names() {
  const auto names = cli::export_format_names();
  return {names.begin(), names.end()};
}

// One of each encoding and layout of a model.
const auto kSomeFormats =
    testing::Values("bf16", "fp8-block", "int4-g32", "awq", "gptq-asym", "mxfp4", "nvfp4");

std::string case_name(const testing::TestParamInfo<std::tuple<Cut, std::string>>& p) {
  std::string name = std::get<0>(p.param).shape + "_" + std::get<1>(p.param);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
  return name;
}

// 768 = 6 * 128, 2880 = 22.5 * 128, 14336 = 112 * 128: cut to 3, 4.5 and 7 of them.
INSTANTIATE_TEST_SUITE_P(Cuts, SynthTest,
                         testing::Combine(testing::Values(Cut{"qwen3.5-35b-a3b", 256, 256, 8, true},
                                                          Cut{"gpt-oss-20b", 576, 576, 4, false},
                                                          Cut{"mixtral-8x7b", 512, 896, 3, true}),
                                          kSomeFormats),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Formats, SynthTest,
                         testing::Combine(testing::Values(Cut{"qwen3-30b-a3b", 256, 384, 8, true}),
                                          testing::ValuesIn(format_names())),
                         case_name);

class SynthSeedTest : public testing::TestWithParam<std::string> {};

TEST_P(SynthSeedTest, BytesDependOnTheSeedAndNotOnThreads) {
  const Cut cut{"qwen3-30b-a3b", 512, 384, 8, true};
  const cli::SynthShape shape = find_shape(cut.shape);
  const cli::SynthPlan plan = cli::plan_synth(shape, cut_config(shape, cut, 1), GetParam());
  const TempDir one;
  const TempDir three;
  const TempDir other;
  write(plan, one, 1, 1);
  write(plan, three, 1, 3);
  write(plan, other, 2, 3);
  const std::string file = "model-00001-of-00001.safetensors";
  const std::string bytes = read_bytes(one / file);
  EXPECT_GT(bytes.size(), static_cast<size_t>(plan.total_bytes));
  EXPECT_TRUE(bytes == read_bytes(three / file));
  EXPECT_FALSE(bytes == read_bytes(other / file));
}

INSTANTIATE_TEST_SUITE_P(Formats, SynthSeedTest, kSomeFormats, [](const auto& p) {
  std::string name = p.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

std::vector<std::string> names_of(const std::string& shape, const char* format) {
  const cli::SynthShape found = find_shape(shape);
  Json config = found.config;
  cli::resize(config, 1, 2);
  config["num_experts_per_tok"] = 2;
  std::vector<std::string> names;
  const cli::SynthPlan plan = cli::plan_synth(found, config, format);
  for (const cli::SynthTensor& tensor : plan.layers[0])
    names.push_back(tensor.info.name);
  return names;
}

// As the goldens of these exporters have it.
TEST(SynthNames, MixtralExpertsAreNamedAsTheExporterDoes) {
  const std::string experts = "model.layers.0.block_sparse_moe.experts.";
  const auto has = [&](const char* format, const std::string& name) {
    const auto names = names_of("mixtral-8x7b", format);
    return std::find(names.begin(), names.end(), experts + name) != names.end();
  };
  EXPECT_TRUE(has("bf16", "1.w1.weight"));
  EXPECT_TRUE(has("fp8-block", "1.w1.weight_scale_inv"));
  EXPECT_TRUE(has("nvfp4", "1.w2.weight_scale_2"));
  EXPECT_TRUE(has("int4-g128", "1.gate_proj.weight_packed"));
  EXPECT_TRUE(has("gptq-asym", "1.down_proj.g_idx"));
  EXPECT_FALSE(has("int4-g128", "1.w1.weight_packed"));
}

TEST(SynthNames, GptOssKeepsItsStackedTensorsInMxfp4Only) {
  const auto has = [&](const char* format, const std::string& name) {
    const auto names = names_of("gpt-oss-20b", format);
    return std::find(names.begin(), names.end(), "model.layers.0.mlp.experts." + name) !=
           names.end();
  };
  EXPECT_TRUE(has("mxfp4", "gate_up_proj_blocks"));
  EXPECT_TRUE(has("mxfp4", "down_proj_scales"));
  EXPECT_TRUE(has("mxfp4", "gate_up_proj_bias"));
  EXPECT_TRUE(has("int4-g32", "1.up_proj.weight_packed"));
  EXPECT_TRUE(has("int4-g32", "1.up_proj.bias"));
  EXPECT_FALSE(has("int4-g32", "gate_up_proj_bias"));
}

// What stays bf16 is named, in the places where each exporter names it.
TEST(SynthNames, SharedExpertsAreListedAsNotQuantized) {
  const cli::SynthShape shape = find_shape("qwen3.5-35b-a3b");
  Json config = shape.config;
  cli::resize(config, 1, 8);
  const auto quantization = [&](const char* format) {
    return Json::parse(cli::plan_synth(shape, config, format).config_text)["quantization_config"];
  };
  const std::string layer = "model.language_model.layers.0.mlp.";
  for (const char* format : {"fp8-channel", "int4-g32", "mxfp4", "nvfp4"}) {
    const std::vector<std::string> ignored = quantization(format)["ignore"];
    for (const char* module : {"gate", "shared_expert.gate_proj", "shared_expert.up_proj",
                               "shared_expert.down_proj", "shared_expert_gate"}) {
      EXPECT_EQ(std::count(ignored.begin(), ignored.end(), layer + module), 1)
          << format << ": " << module;
    }
  }
  EXPECT_TRUE(quantization("gptq-asym")["dynamic"].contains(
      R"(-:model\.language_model\.layers\.0\.mlp\.shared_expert\.up_proj$)"));
  EXPECT_EQ(quantization("awq")["modules_to_not_convert"].size(), 4U);
}

}  // namespace
}  // namespace gantry::test
