// AWQ and GPTQ of whole layers: captures, `gantry calibrate`, `gantry quantize`, and the experts'
// outputs on tokens that calibration did not see.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "kernels/activation/activation.h"
#include "kernels/base/float_convert.h"
#include "runtime/calibration.h"
#include "tests/cli/calibrated_case.h"
#include "tools/awq_scaling.h"

namespace gantry::test {
namespace {

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

constexpr size_t kHidden = 256;

// The source, calibrated once for all tests, and what its experts make of tokens that calibration
// did not see.
struct Source {
  path directory = source_dir("qwen3_moe");
  Calibrated layer{directory};
  std::vector<Floats> matrices = expert_matrices(directory);
  MutableCheckpoint checkpoint = MutableCheckpoint::read(directory);
  Floats x = layer.held_out(0, 60);
  Floats y;

  Source() {
    for (size_t e = 0; e < 4; ++e) {
      const Floats one = expert_output(matrices, e, x, kHidden);
      y.insert(y.end(), one.begin(), one.end());
    }
  }

  static const Source& get() {
    static const Source source;
    return source;
  }
};

class QuantizeAwqTest : public testing::TestWithParam<std::string> {};

TEST_P(QuantizeAwqTest, AndGptqLoseLessOfTheOutputsThanRoundingToNearest) {
  const Source& source = Source::get();
  const Calibrated& layer = source.layer;
  const auto rtn = layer.quantize({.format = GetParam()}, Calibrated::Method::kRtn);
  const auto gptq = layer.quantize({.format = GetParam()}, Calibrated::Method::kGptq);
  const auto awq = layer.quantize({.format = GetParam()}, Calibrated::Method::kAwq);
  const Floats scales = folded_scales(source.checkpoint, MutableCheckpoint::read(awq->out), 0);
  const auto error = [&](const path& out, const Floats& inputs) {
    const auto written = expert_matrices(out);
    Floats found;
    for (size_t e = 0; e < 4; ++e) {
      const Floats one = expert_output(written, e, inputs, kHidden);
      found.insert(found.end(), one.begin(), one.end());
    }
    return relative_error(found, source.y);
  };
  const double nearest = error(rtn->out, source.x);
  EXPECT_LT(error(gptq->out, source.x), nearest) << "seed " << layer.rng.seed();
  EXPECT_LT(error(awq->out, divided(source.x, scales)), nearest) << "seed " << layer.rng.seed();
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeAwqTest,
                         testing::Values("int4-g128", "int4-asym", "awq", "gptq", "mxfp4", "nvfp4",
                                         "nvfp4-awq", "int4-awq"),
                         [](const auto& p) { return readable(p.param); });

// Columns in groups by activation order: what is read back is no worse than in order, and its
// groups are whole but not runs of columns.
TEST(QuantizeDescAct, KeepsTheGroupsInGIdx) {
  const Calibrated& layer = Source::get().layer;
  const auto rtn = layer.quantize({.format = "gptq"}, Calibrated::Method::kRtn);
  const auto gptq = layer.quantize({.format = "gptq", .desc_act = true}, Calibrated::Method::kGptq);
  const auto written = MutableCheckpoint::read(gptq->out);
  EXPECT_TRUE(nlohmann::json::parse(written.config)["quantization_config"]["desc_act"]);
  const auto& index = written.tensors.at("model.layers.0.mlp.experts.0.gate_proj.g_idx");
  std::vector<int32_t> groups(kHidden);
  ASSERT_EQ(index.bytes.size(), groups.size() * 4);
  std::memcpy(groups.data(), index.bytes.data(), index.bytes.size());
  EXPECT_EQ(std::count(groups.begin(), groups.end(), 0), 128);
  EXPECT_EQ(std::count(groups.begin(), groups.end(), 1), 128);
  EXPECT_FALSE(std::is_sorted(groups.begin(), groups.end()));
  const Floats& x = Source::get().x;
  const Floats y = expert_output(Source::get().matrices, 0, x, kHidden);
  const auto error = [&](const path& out) {
    return relative_error(expert_output(expert_matrices(out), 0, x, kHidden), y);
  };
  EXPECT_LT(error(gptq->out), error(rtn->out)) << "seed " << layer.rng.seed();
  expect_error(
      [&] {
        (void)layer.quantize({.format = "int4-g128", .desc_act = true}, Calibrated::Method::kGptq);
      },
      ErrorCode::kInvalidArgument, {"--desc-act", "int4-g128", "g_idx"});
}

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

// ModelOpt's formats have a tensor for the inverse of the scales: one vector a layer for w1 and w3,
// one an expert for w2; nothing else of the model changes.
TEST(QuantizeAwq, KeepsFactorsOfInputsWhereTheFormatHasThem) {
  const Calibrated& layer = Source::get().layer;
  const auto awq = layer.quantize({.format = "nvfp4-awq"}, Calibrated::Method::kAwq);
  const MutableCheckpoint& before = Source::get().checkpoint;
  const auto after = MutableCheckpoint::read(awq->out);
  for (const auto& [name, tensor] : before.tensors) {
    if (name.find(".experts.") == std::string::npos) {
      EXPECT_TRUE(after.tensors.at(name).bytes == tensor.bytes) << name;
    }
  }
  const auto factors = [&](int expert, const char* projection) {
    return values_of(
        after, fmt::format("model.layers.0.mlp.experts.{}.{}.pre_quant_scale", expert, projection));
  };
  const Floats shared = factors(0, "gate_proj");
  EXPECT_NE(*std::min_element(shared.begin(), shared.end()),
            *std::max_element(shared.begin(), shared.end()));
  for (int e = 0; e < 4; ++e) {
    EXPECT_EQ(factors(e, "gate_proj"), shared);
    EXPECT_EQ(factors(e, "up_proj"), shared);
  }
  EXPECT_NE(factors(0, "down_proj"), factors(1, "down_proj"));
  // Without AWQ the tensor says one.
  const auto rtn = layer.quantize({.format = "nvfp4-awq"}, Calibrated::Method::kRtn);
  EXPECT_EQ(values_of(MutableCheckpoint::read(rtn->out),
                      "model.layers.0.mlp.experts.3.down_proj.pre_quant_scale"),
            Floats(128, 1.0F));
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
  const Calibrated& layer = Source::get().layer;
  const auto awq = layer.quantize({.format = "nvfp4"}, Calibrated::Method::kAwq);
  const auto written = MutableCheckpoint::read(awq->out);
  const Floats scales = folded_scales(Source::get().checkpoint, written, 0);
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
