// `gantry quantize` on Transformers' checkpoints: the names, dtypes and shapes of exporters'
// goldens, weights that load and compute, and exporters' own numbers where they round alike.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/cli/quantize_case.h"

namespace gantry::test {
namespace {

double relative(const std::vector<float>& found, const std::vector<float>& expected) {
  return relative_error(found, expected);
}

// ---- every format ------------------------------------------------------------------------------

// Tests of a format share one export.
class QuantizeFormatTest : public testing::TestWithParam<std::string> {
 protected:
  static const path& exported(const std::string& format) {
    static std::map<std::string, std::unique_ptr<Quantized>> done;
    auto [at, is_new] = done.try_emplace(format);
    if (is_new) at->second = quantize(source_dir("qwen3_moe"), {.format = format});
    return at->second->out;
  }
};

// Of e4m3, whose relative errors are at most 2^-4: 2^-4 / sqrt(3) if they are spread evenly.
constexpr double kFp8Error = 0.0361;

// Relative errors that the exporters' own files of the same source have (golden set's README),
// with some room: 4 bits 0.08 to 0.12, 8 bits 0.006 to 0.03.
double largest_error(const std::string& format) {
  const bool four_bits = format.starts_with("int4") || format == "awq" ||
                         format.starts_with("mxfp4") || format.starts_with("nvfp4") ||
                         format == "gptq" || format == "gptq-asym";
  if (four_bits) return 0.125;
  return format.find("int8") != std::string::npos ? 0.01 : kFp8Error;
}

TEST_P(QuantizeFormatTest, WritesACheckpointThatLoadsWithItsOwnNumbers) {
  const path& out_dir = exported(GetParam());
  const auto source = expert_matrices(source_dir("qwen3_moe"));
  const auto written = expert_matrices(out_dir);
  ASSERT_EQ(written.size(), source.size());
  const cli::ExportFormat format = cli::find_export_format(GetParam(), "qwen3_moe");
  for (size_t m = 0; m < written.size(); ++m) {
    EXPECT_LT(relative(written[m], source[m]), largest_error(GetParam())) << m;
    // The file's bytes give what was quantized: gate and up of 128 x 256, down of 256 x 128.
    const bool down = m % 3 == 2;
    const int64_t out = down ? 256 : 128;
    float shared = 0.0F;
    if (format.share_gate_up && !down) {
      for (const size_t s : {m - m % 3, m - m % 3 + 1})
        shared = std::max(shared, weight_range(source[s]).amax());
    }
    const std::vector<float> expected = dequantize(
        quantize_weights(format.matrix.quantization, source[m], out, 32768 / out, shared));
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(written[m][i], expected[i], std::fabs(expected[i]) * 0x1p-22F) << m << ": " << i;
  }
}

// The forward pass over codes is that over the dequantized matrices, written as f32.
TEST_P(QuantizeFormatTest, ComputesWhatTheDequantizedMatricesGive) {
  const path& out_dir = exported(GetParam());
  const auto matrices = expert_matrices(out_dir);
  MutableCheckpoint plain = MutableCheckpoint::read(source_dir("qwen3_moe"));
  size_t next = 0;
  for (int e = 0; e < 4; ++e) {
    for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
      auto& tensor =
          plain.tensors.at(fmt::format("model.layers.0.mlp.experts.{}.{}.weight", e, projection));
      tensor.dtype = DType::kF32;
      tensor.bytes.resize(matrices[next].size() * 4);
      std::memcpy(tensor.bytes.data(), matrices[next++].data(), tensor.bytes.size());
    }
  }
  const TempDir dir;
  plain.write(dir.path());
  SeededRng rng;
  const std::vector<float> hidden = rng.normals(9 * 256);
  const LayerBatch batch{.hidden_states = hidden};
  std::vector<std::vector<float>> outputs;
  for (const path& directory : {out_dir, dir.path()}) {
    MoeModel model(directory, /*names_only=*/false);
    FusedMoeOptions options;
    options.activations = ActivationDType::kF32;
    options.threads.count = 1;
    outputs.push_back(
        run_layer_on_ranks(model, 0, {}, Placement::kLinear, {}, options, &batch)[0].out);
    ASSERT_TRUE(model.report().ok()) << summarize(model.report(), 10);
  }
  EXPECT_LE(relative(outputs[0], outputs[1]), 1e-5) << "seed " << rng.seed();
}

std::vector<std::string> quantized_formats() {
  const auto names = cli::export_format_names();
  return {names.begin() + 1, names.end()};  // without bf16
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeFormatTest, testing::ValuesIn(quantized_formats()),
                         [](const auto& p) { return readable(p.param); });

// ---- exporters' files --------------------------------------------------------------------------

struct Exporter {
  std::string format;
  std::string source;
  std::string golden;  ///< of tests/golden/quant
};

void PrintTo(const Exporter& exporter, std::ostream* out) { *out << exporter.golden; }

class QuantizeGoldenTest : public testing::TestWithParam<Exporter> {};

// Exporters quantize attention too.
TEST_P(QuantizeGoldenTest, HasTheTensorsOfTheExporter) {
  const auto done = quantize(source_dir(GetParam().source.c_str()),
                             {.format = GetParam().format, .include = {"*self_attn.?_proj"}});
  const auto found = MutableCheckpoint::read(done->out);
  const auto expected = MutableCheckpoint::read(golden_root() / "quant" / GetParam().golden);
  for (const auto& [name, tensor] : expected.tensors) {
    const auto at = found.tensors.find(name);
    ASSERT_NE(at, found.tensors.end()) << name;
    EXPECT_EQ(to_string(at->second.dtype), to_string(tensor.dtype)) << name;
    EXPECT_EQ(at->second.shape, tensor.shape) << name;
  }
  EXPECT_EQ(found.tensors.size(), expected.tensors.size());
  const auto ours = nlohmann::json::parse(found.config);
  const auto theirs = nlohmann::json::parse(expected.config);
  EXPECT_EQ(ours["quantization_config"], theirs["quantization_config"]);
}

INSTANTIATE_TEST_SUITE_P(Exporters, QuantizeGoldenTest,
                         testing::Values(Exporter{"int4-asym", "qwen3_moe",
                                                  "llmcompressor-w4a16_asym"},
                                         Exporter{"int8", "qwen3_moe", "llmcompressor-w8a8"},
                                         Exporter{"mxfp4", "qwen3_moe", "llmcompressor-mxfp4"},
                                         Exporter{"mxfp8", "qwen3_moe", "llmcompressor-mxfp8"},
                                         Exporter{"nvfp4-ct", "qwen3_moe", "llmcompressor-nvfp4"},
                                         Exporter{"nvfp4", "mixtral", "modelopt-nvfp4-mixtral"}),
                         [](const auto& p) { return readable(p.param.golden); });

// llm-compressor and ModelOpt round the same weights to the same codes under the same scales.
TEST(QuantizeExactly, GivesTheBytesOfTheExporter) {
  for (const auto& [format, source, golden] :
       {std::array{"mxfp4", "qwen3_moe", "llmcompressor-mxfp4"},
        std::array{"nvfp4", "mixtral", "modelopt-nvfp4-mixtral"}}) {
    const auto done = quantize(source_dir(source), {.format = format});
    const auto found = MutableCheckpoint::read(done->out);
    const auto expected = MutableCheckpoint::read(golden_root() / "quant" / golden);
    int compared = 0;
    for (const auto& [name, tensor] : expected.tensors) {
      if (name.find(".experts.") == std::string::npos || name.ends_with("input_scale")) continue;
      EXPECT_TRUE(found.tensors.at(name).bytes == tensor.bytes) << name;
      ++compared;
    }
    EXPECT_GE(compared, 24) << golden;
  }
}

// And so the block gives what the golden set computed from the exporter's file.
TEST(QuantizeExactly, ComputesTheExportersReference) {
  const auto done = quantize(source_dir("mixtral"), {.format = "nvfp4-a16"});
  MoeModel model(done->out, /*names_only=*/false);
  const Reference reference = read_reference(
      golden_root() / "quant" / "modelopt-nvfp4-mixtral" / "moe_io.safetensors", model.config());
  VerifySettings settings;
  const VerifyResult result = verify_model(model, &reference, settings, {});
  ASSERT_EQ(result.blocks.size(), 1U);
  EXPECT_LE(result.blocks[0].error, 1e-5);
  EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
}

// llm-compressor divides in bf16, so that codes may be one apart; its scales are the same.
TEST(QuantizeExactly, GivesTheScalesOfLlmCompressorsInt8) {
  const auto done = quantize(source_dir("qwen3_moe"), {.format = "int8"});
  const auto found = MutableCheckpoint::read(done->out);
  const auto expected = MutableCheckpoint::read(golden_root() / "quant" / "llmcompressor-w8a8");
  for (const auto& [name, tensor] : expected.tensors) {
    if (name.find(".experts.") == std::string::npos) continue;
    const auto& ours = found.tensors.at(name).bytes;
    ASSERT_EQ(ours.size(), tensor.bytes.size());
    if (name.ends_with("weight_scale")) {
      EXPECT_TRUE(ours == tensor.bytes) << name;
      continue;
    }
    for (size_t i = 0; i < ours.size(); ++i) {
      ASSERT_LE(std::abs(static_cast<int8_t>(ours[i]) - static_cast<int8_t>(tensor.bytes[i])), 1)
          << name << ": " << i;
    }
  }
}

// ---- other sources
// -------------------------------------------------------------------------------

// Experts in 3-D tensors, with biases and gate and up interleaved (gpt-oss), or one after the
// other.
TEST(QuantizeSources, ReadsEverySpellingAndWritesTheExportersOne) {
  for (const char* family : {"gpt_oss", "qwen3_moe-fused", "mixtral", "nemotron_h"}) {
    const path source = golden_root() / "families" / family;
    if (!std::filesystem::exists(source)) continue;
    SCOPED_TRACE(family);
    const auto original = expert_matrices(source);
    for (const char* format : {"fp8-channel", "nvfp4-a16"}) {
      const auto done = quantize(source, {.format = format});
      const auto written = expert_matrices(done->out);
      ASSERT_EQ(written.size(), original.size());
      for (size_t m = 0; m < written.size(); ++m)
        EXPECT_LT(relative(written[m], original[m]), format[0] == 'f' ? kFp8Error : 0.125) << m;
    }
  }
}

// 4 experts, H 64, I 96: rows of whole blocks of 32, stacked as gpt-oss' own files have them.
TEST(QuantizeSources, StacksGptOssExpertsAsItsOwnFilesDo) {
  SeededRng rng;
  MutableCheckpoint source = MutableCheckpoint::read(golden_root() / "quant" / "gpt_oss-mxfp4");
  const auto original = expert_matrices(golden_root() / "quant" / "gpt_oss-mxfp4");
  const auto done = quantize(golden_root() / "quant" / "gpt_oss-mxfp4", {.format = "mxfp4"});
  // What was MXFP4 is MXFP4 again: its values are codes, so nothing is lost.
  EXPECT_TRUE(expert_matrices(done->out) == original);
  const auto found = MutableCheckpoint::read(done->out);
  EXPECT_EQ(found.tensors.size(), source.tensors.size());
  for (const auto& [name, tensor] : source.tensors) {
    ASSERT_TRUE(found.tensors.contains(name)) << name;
    EXPECT_EQ(found.tensors.at(name).shape, tensor.shape) << name;
    if (name.ends_with("bias")) {
      EXPECT_TRUE(found.tensors.at(name).bytes == tensor.bytes) << name;
    }
  }
}

// Every quantized golden, with attention in the same scheme: experts quantized anew, the rest in
// bf16, under one config.
TEST(QuantizeSources, ReadsOtherQuantizedCheckpoints) {
  for (const Golden& golden : quant_goldens()) {
    SCOPED_TRACE(golden.name);
    const auto original = expert_matrices(golden.directory);
    const auto done = quantize(golden.directory, {.format = "fp8-channel"});
    const auto written = expert_matrices(done->out);
    ASSERT_EQ(written.size(), original.size());
    for (size_t m = 0; m < written.size(); ++m)
      EXPECT_LT(relative(written[m], original[m]), kFp8Error) << m;
    for (const auto& [name, tensor] : MutableCheckpoint::read(done->out).tensors) {
      if (name.find("self_attn") != std::string::npos && name.ends_with("proj.weight")) {
        EXPECT_TRUE(is_plain_float(tensor.dtype)) << name;
      }
    }
  }
}

// Codes of bitsandbytes are one column of bytes: without the shape in its quant_state nobody knows
// the matrix' size.
TEST(QuantizeSources, NameTheQuantStateThatDoesNotSayTheShape) {
  auto damaged = MutableCheckpoint::read(golden_root() / "quant" / "bitsandbytes-nf4");
  const std::string name = "model.layers.0.self_attn.k_proj.weight.quant_state.bitsandbytes__nf4";
  auto& bytes = damaged.tensors.at(name).bytes;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const size_t key = text.find("shape");
  ASSERT_NE(key, std::string_view::npos);
  bytes[key] = std::byte{'S'};
  const TempDir dir;
  damaged.write(dir.path());
  expect_error([&] { (void)quantize(dir.path(), {.format = "fp8-channel"}); }, ErrorCode::kFormat,
               {name, "[out, in]"});
}

// ---- options
// -------------------------------------------------------------------------------------

TEST(QuantizeOptions, LeaveMatricesOutAndSayIt) {
  const auto done =
      quantize(source_dir("qwen3_moe"),
               {.format = "int4-g128", .ignore = {"*.experts.2.*", "re:.*down_proj"}});
  const auto found = MutableCheckpoint::read(done->out);
  const std::string experts = "model.layers.0.mlp.experts.";
  EXPECT_EQ(found.tensors.at(experts + "2.gate_proj.weight").dtype, DType::kBF16);
  EXPECT_EQ(found.tensors.at(experts + "1.down_proj.weight").dtype, DType::kBF16);
  EXPECT_TRUE(found.tensors.contains(experts + "1.gate_proj.weight_packed"));
  const std::vector<std::string> ignored =
      nlohmann::json::parse(found.config)["quantization_config"]["ignore"];
  for (const std::string& module :
       {experts + "2.gate_proj", experts + "0.down_proj", std::string("model.layers.0.mlp.gate"),
        std::string("model.layers.0.self_attn.q_proj"), std::string("lm_head")}) {
    EXPECT_EQ(std::count(ignored.begin(), ignored.end(), module), 1) << module;
  }
  const auto source = MutableCheckpoint::read(source_dir("qwen3_moe"));
  EXPECT_EQ(found.tensors.at(experts + "2.up_proj.weight").bytes,
            source.tensors.at(experts + "2.up_proj.weight").bytes);
  const auto written = expert_matrices(done->out);
  EXPECT_EQ(written.size(), 12U);
}

TEST(QuantizeOptions, SplitIntoFilesWithoutAChange) {
  const auto one = quantize(source_dir("qwen3_moe"), {.format = "nvfp4"});
  const auto many = quantize(source_dir("qwen3_moe"), {.format = "nvfp4"}, {}, 100'000);
  EXPECT_TRUE(std::filesystem::exists(many->out / "model.safetensors.index.json"));
  EXPECT_TRUE(expert_matrices(one->out) == expert_matrices(many->out));
}

TEST(QuantizeOptions, AreRefusedWhereTheyMakeNoSense) {
  const auto refused = [](const cli::QuantizeRequest& request,
                          std::initializer_list<std::string_view> parts) {
    expect_error([&] { (void)quantize(source_dir("qwen3_moe"), request); },
                 ErrorCode::kInvalidArgument, parts);
  };
  refused({.format = "int4-g128", .include = {"*.no_such_layer"}}, {"--include", "no_such_layer"});
  refused({.format = "int4-g128", .ignore = {"nothing"}}, {"--ignore", "nothing"});
  refused({.format = "bf16"}, {"bf16"});
  refused({.format = "fp8-block", .group_size = 64}, {"--group-size"});
  refused({.format = "int4-g128", .group_size = 96}, {"groups of 96"});
}

TEST(QuantizeDamage, NamesTheElementThatIsNotANumber) {
  MutableCheckpoint damaged = MutableCheckpoint::read(source_dir("qwen3_moe"));
  auto& tensor = damaged.tensors.at("model.layers.0.mlp.experts.1.up_proj.weight");
  const uint16_t nan = 0x7fc0;
  std::memcpy(tensor.bytes.data() + 2 * (3 * 256 + 5), &nan, 2);
  const TempDir dir;
  damaged.write(dir.path());
  expect_error([&] { (void)quantize(dir.path(), {.format = "mxfp4"}); }, ErrorCode::kFormat,
               {"experts.1.up_proj.weight", "expert 1", "w3", "[3, 5]"});
}

}  // namespace
}  // namespace gantry::test
