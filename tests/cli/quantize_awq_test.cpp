// AWQ and GPTQ of whole layers: captures, `gantry calibrate`, `gantry quantize`, and the experts'
// outputs on tokens that calibration did not see.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <optional>

#include "kernels/activation/activation.h"
#include "kernels/base/float_convert.h"
#include "runtime/calibration.h"
#include "tests/cli/quantize_case.h"
#include "tools/awq_scaling.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

// What hidden states of a layer look like: heavy tails, a few channels of 20 times the others'
// size, and channels that hang together by 16 common factors: what both methods are for.
struct HiddenStates {
  static constexpr size_t kFactors = 16;

  HiddenStates(SeededRng& rng, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      sizes.push_back(std::exp(0.7F * rng.normal()) * (i % 37 == 5 ? 20.0F : 1.0F));
      for (size_t f = 0; f < kFactors; ++f)
        mix.push_back(0.4F * rng.normal());
    }
  }

  [[nodiscard]] Floats rows(SeededRng& rng, int64_t count) const {
    Floats values;
    for (int64_t r = 0; r < count; ++r) {
      const float tail = 1.0F / (0.5F + std::fabs(rng.normal()));
      std::array<float, kFactors> factors{};
      for (float& factor : factors)
        factor = rng.normal();
      for (size_t i = 0; i < sizes.size(); ++i) {
        float value = rng.normal();
        for (size_t f = 0; f < kFactors; ++f)
          value += mix[i * kFactors + f] * factors[f];
        values.push_back(sizes[i] * tail * value);
      }
    }
    return values;
  }

  Floats sizes;
  Floats mix;
};

// A source with its statistics, of all layers.
class Calibrated {
 public:
  explicit Calibrated(path source, bool route_all = true) : source_(std::move(source)) {
    MoeModel model(source_, /*names_only=*/false);
    std::vector<TensorInfo> tensors;
    std::vector<Floats> captures;
    for (const MoeLayerSpec& spec : model.config().layers) {
      hidden_.emplace_back(rng, spec.hidden_size);
      captures.push_back(hidden_.back().rows(rng, kTokens));
      tensors.push_back({fmt::format("model.layers.{}.mlp.input", spec.layer),
                         DType::kF32,
                         {kTokens, spec.hidden_size}});
    }
    const path file = dir_ / "captures.safetensors";
    SafetensorsWriter writer(file, tensors, {});
    for (size_t l = 0; l < tensors.size(); ++l)
      writer.write(tensors[l].name, 0, std::as_bytes(std::span(captures[l])));
    writer.finish();
    const std::vector<path> files = {file};
    const ActivationFiles activations(files, model.config());
    CalibrationSettings settings;
    settings.route_all = route_all;
    settings.hessians = true;
    std::filesystem::create_directory(stats());
    for (const MoeLayerSpec& spec : model.config().layers)
      calibrate_layer(model, spec.layer, activations, settings, stats());
    std::ofstream(stats() / "calibration.json") << "{}";
  }

  enum class Method { kRtn, kGptq, kAwq };

  [[nodiscard]] std::unique_ptr<Quantized> quantize(const cli::QuantizeRequest& request,
                                                    Method method) const {
    auto done = std::make_unique<Quantized>();
    done->out = done->dir / "out";
    MoeModel model(source_, /*names_only=*/false);
    const cli::QuantizePlan plan = cli::plan_quantize(model, request);
    cli::StatsHessians hessians(stats(), {});
    cli::QuantizeRun run;
    run.directory = done->out;
    run.memory_bytes = int64_t{1} << 30;
    run.fingerprint = "test";
    run.threads.count = 2;
    run.ranges = cli::InputRanges::read(stats(), model.config());
    if (method == Method::kGptq) run.hessians = &hessians;
    std::optional<cli::AwqScaling> awq;
    if (method == Method::kAwq) run.awq = &awq.emplace(model, plan, hessians, stats(), run.threads);
    done->result = cli::run_quantize(model, plan, run);
    return done;
  }

  // Other tokens of a layer.
  Floats held_out(size_t layer, int64_t count) { return hidden_[layer].rows(rng, count); }
  [[nodiscard]] path stats() const { return dir_ / "stats"; }

  SeededRng rng;

 private:
  static constexpr int64_t kTokens = 1024;
  path source_;
  TempDir dir_;
  std::vector<HiddenStates> hidden_;
};

// y = x W^T in f64.
Floats multiply(const Floats& x, const Floats& w, size_t in) {
  Floats y;
  for (size_t r = 0; r < x.size(); r += in) {
    for (size_t o = 0; o < w.size(); o += in) {
      double sum = 0.0;
      for (size_t i = 0; i < in; ++i)
        sum += static_cast<double>(x[r + i]) * w[o + i];
      y.push_back(static_cast<float>(sum));
    }
  }
  return y;
}

// The output of expert e of the first layer, of w1, w3, w2 in expert_matrices' order.
Floats expert_output(const std::vector<Floats>& matrices, size_t e, const Floats& x,
                     size_t hidden) {
  Floats gate = multiply(x, matrices[3 * e], hidden);
  const Floats up = multiply(x, matrices[3 * e + 1], hidden);
  const auto n = static_cast<int64_t>(gate.size());
  apply_activation({}, 1, n, gate.data(), n, up.data(), n, gate.data(), n);
  return multiply(gate, matrices[3 * e + 2], matrices[3 * e].size() / hidden);
}

Floats values_of(const MutableCheckpoint& checkpoint, const std::string& name) {
  const auto& tensor = checkpoint.tensors.at(name);
  Floats values(tensor.bytes.size() / static_cast<size_t>(size_of(tensor.dtype)));
  convert_to_f32(tensor.bytes.data(), tensor.dtype, static_cast<int64_t>(values.size()),
                 values.data());
  return values;
}

// What was folded into the norm in front of layer l: old / new.
Floats folded_scales(const MutableCheckpoint& source, const MutableCheckpoint& written, int layer) {
  const std::string norm = fmt::format("model.layers.{}.post_attention_layernorm.weight", layer);
  Floats scales = values_of(source, norm);
  const Floats found = values_of(written, norm);
  for (size_t i = 0; i < scales.size(); ++i)
    scales[i] /= found[i];
  return scales;
}

Floats divided(Floats rows, const Floats& scales) {
  for (size_t i = 0; i < rows.size(); ++i)
    rows[i] /= scales[i % scales.size()];
  return rows;
}

class QuantizeAwqTest : public testing::TestWithParam<std::string> {};

TEST_P(QuantizeAwqTest, AndGptqLoseLessOfTheOutputsThanRoundingToNearest) {
  constexpr size_t kHidden = 256;
  const path source = source_dir("qwen3_moe");
  Calibrated layer(source);
  const auto matrices = expert_matrices(source);
  const auto rtn = layer.quantize({.format = GetParam()}, Calibrated::Method::kRtn);
  const auto gptq = layer.quantize({.format = GetParam()}, Calibrated::Method::kGptq);
  const auto awq = layer.quantize({.format = GetParam()}, Calibrated::Method::kAwq);
  const Floats scales =
      folded_scales(MutableCheckpoint::read(source), MutableCheckpoint::read(awq->out), 0);
  const Floats x = layer.held_out(0, 60);
  Floats y;
  for (size_t e = 0; e < 4; ++e) {
    const Floats one = expert_output(matrices, e, x, kHidden);
    y.insert(y.end(), one.begin(), one.end());
  }
  const auto error = [&](const path& out, const Floats& inputs) {
    const auto written = expert_matrices(out);
    Floats found;
    for (size_t e = 0; e < 4; ++e) {
      const Floats one = expert_output(written, e, inputs, kHidden);
      found.insert(found.end(), one.begin(), one.end());
    }
    return relative_error(found, y);
  };
  const double nearest = error(rtn->out, x);
  EXPECT_LT(error(gptq->out, x), nearest) << "seed " << layer.rng.seed();
  EXPECT_LT(error(awq->out, divided(x, scales)), nearest) << "seed " << layer.rng.seed();
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeAwqTest,
                         testing::Values("int4-g128", "int4-asym", "awq", "gptq", "mxfp4", "nvfp4"),
                         [](const auto& p) { return readable(p.param); });

// Whatever reads the norm gives the same bits as before: each product of a weight and its channel
// of the norm is what it was. Nothing else has changed.
TEST(QuantizeAwq, FoldsScalesIntoTheNormAndAllThatReadsIt) {
  for (const char* family : {"deepseek_v3", "qwen2_moe", "mixtral"}) {
    SCOPED_TRACE(family);
    const path source = golden_root() / "families" / family;
    const Calibrated layers(source);
    const auto done =
        layers.quantize({.format = "int4-g128", .group_size = 16}, Calibrated::Method::kAwq);
    const auto before = MutableCheckpoint::read(source);
    const auto after = MutableCheckpoint::read(done->out);
    MoeModel model(source, /*names_only=*/false);
    int folded = 0;
    for (const auto& [name, tensor] : before.tensors) {
      const ParsedName parsed = model.tensors().names().parse(name);
      const bool moe = parsed.name_class == NameClass::kMoe;
      if (moe && is_expert_part(parsed.ref.part)) continue;
      SCOPED_TRACE(name);
      const bool reads =
          moe && parsed.ref.kind == TensorKind::kWeight &&
          (parsed.ref.part == Part::kRouter || parsed.ref.part == Part::kSharedGate ||
           parsed.ref.part == Part::kSharedW1 || parsed.ref.part == Part::kSharedW3);
      if (reads) {
        const Floats scales = folded_scales(before, after, parsed.ref.layer);
        EXPECT_TRUE(divided(values_of(after, name), scales) == values_of(before, name));
        folded += scales == Floats(scales.size(), 1.0F) ? 0 : 1;
      } else if (!name.ends_with("post_attention_layernorm.weight")) {
        EXPECT_TRUE(after.tensors.at(name).bytes == tensor.bytes);
      }
    }
    EXPECT_GT(folded, 0) << "seed " << layers.rng.seed();
  }
}

// A family whose norm has other readers keeps it; the up projection still takes w2's scales.
TEST(QuantizeAwq, LeavesNormsAloneThatOthersRead) {
  const path source = golden_root() / "families" / "minimax";
  const Calibrated layers(source);
  const auto done = layers.quantize({.format = "fp8-channel"}, Calibrated::Method::kAwq);
  const auto before = MutableCheckpoint::read(source);
  const auto after = MutableCheckpoint::read(done->out);
  for (const auto& [name, tensor] : before.tensors) {
    if (name.find(".experts.") != std::string::npos) continue;
    EXPECT_TRUE(after.tensors.at(name).bytes == tensor.bytes) << name;
  }
}

// Inputs of w2 in range: the static scales are those of what is divided.
TEST(QuantizeAwq, StaticInputScalesAreOfTheScaledInputs) {
  const path source = source_dir("qwen3_moe");
  const Calibrated layer(source);
  const auto awq = layer.quantize({.format = "nvfp4"}, Calibrated::Method::kAwq);
  const auto written = MutableCheckpoint::read(awq->out);
  const Floats scales = folded_scales(MutableCheckpoint::read(source), written, 0);
  const SafetensorsFile stats(layer.stats() / calibration_file_name(0));
  const TensorInfo& info = *stats.find("gate_up.channel_amax");
  Floats amax(static_cast<size_t>(info.num_elements()));
  stats.read(info.begin, amax.data(), info.num_bytes());
  float largest = 0.0F;
  for (size_t i = 0; i < amax.size(); ++i)
    largest = std::max(largest, amax[i] / scales[i % scales.size()]);
  for (const char* name : {"0.gate_proj", "3.up_proj"}) {
    EXPECT_EQ(values_of(written, fmt::format("model.layers.0.mlp.experts.{}.input_scale", name))[0],
              largest / 2688.0F);
  }
}

}  // namespace
}  // namespace gantry::test
