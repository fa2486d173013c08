// What `gantry synth` writes for one quantized matrix, against the tensors and the
// quantization_config of real exporters' files (tests/golden/encodings, tests/golden/quant).

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "loader/safetensors.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tools/synth_formats.h"
#include "tools/synth_quant_config.h"

namespace gantry::test {
namespace {

struct Case {
  std::string format;
  std::string family;
  std::string golden;
  int64_t group;  // of the golden: its matrices are small
};

void PrintTo(const Case& c, std::ostream* os) { *os << c.format << " of " << c.family; }

using Described = std::map<std::string, std::pair<DType, std::vector<int64_t>>>;  // by suffix

class SynthFormatTest : public testing::TestWithParam<Case> {
 protected:
  SynthFormatTest()
      : format(cli::find_synth_format(GetParam().format, GetParam().family)),
        file(golden_root() / "encodings" / (GetParam().golden + ".safetensors")) {}

  [[nodiscard]] Described written_by_exporter(const std::string& projection) const {
    Described tensors;
    for (const TensorInfo& info : file.header().tensors) {
      if (!info.name.starts_with(projection + ".") || info.name.ends_with(".rows16")) continue;
      tensors[info.name.substr(projection.size() + 1)] = {info.dtype, info.shape};
    }
    return tensors;
  }

  [[nodiscard]] Described written_by_synth(const MatrixSize& size) const {
    Described tensors;
    for (const cli::MatrixTensor& tensor : format.tensors(size, GetParam().group))
      tensors[tensor.suffix] = {tensor.dtype, tensor.shape};
    return tensors;
  }

  const cli::SynthFormat& format;
  SafetensorsFile file;
};

TEST_P(SynthFormatTest, HasTheTensorsOfTheExporter) {
  const int64_t hidden = file.find("gate.rows16")->shape[1];
  const int64_t intermediate = file.find("down.rows16")->shape[1];
  EXPECT_EQ(written_by_synth({intermediate, hidden}), written_by_exporter("gate"));
  EXPECT_EQ(written_by_synth({hidden, intermediate}), written_by_exporter("down"));
}

TEST_P(SynthFormatTest, HasTheConfigOfTheExporter) {
  const auto root = nlohmann::json::parse(file.header().metadata.at("quantization_config"));
  nlohmann::json expected = root.at("quantization_config");
  const std::string router = GetParam().family == "gpt_oss" ? "router" : "gate";
  nlohmann::json found = format.config({"model.layers.0.mlp." + router}, GetParam().group);
  // Settings of the exporter's run.
  ASSERT_EQ(found.contains("meta"), expected.contains("meta"));
  expected.erase("meta");
  found.erase("meta");
  // Lists: in any order. That golden leaves attention alone, of which synth writes nothing.
  for (const char* key : {"ignore", "modules_to_not_convert"}) {
    ASSERT_EQ(found.contains(key), expected.contains(key));
    if (!found.contains(key)) continue;
    std::set<std::string> names = expected[key];
    names.erase("model.layers.0.self_attn");
    EXPECT_EQ(std::set<std::string>(found[key]), names);
    expected.erase(key);
    found.erase(key);
  }
  EXPECT_EQ(found, expected);
}

TEST_P(SynthFormatTest, FillsTheSameBytesForTheSameSeedOnly) {
  for (const cli::MatrixTensor& tensor : format.tensors({256, 256}, GetParam().group)) {
    const int64_t element = tensor.content->element_bytes();
    std::vector<std::byte> first(static_cast<size_t>(element));
    if (tensor.shape.size() >= 2) first.resize(static_cast<size_t>(64 * element));
    std::vector<std::byte> again = first;
    std::vector<std::byte> other = first;
    tensor.content->fill(1, 0, first);
    tensor.content->fill(1, 0, again);
    tensor.content->fill(2, 0, other);
    EXPECT_EQ(first, again) << tensor.suffix;
    if (tensor.shape.size() >= 2) {
      EXPECT_NE(first, other) << tensor.suffix;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Exporters, SynthFormatTest,
    testing::Values(Case{"fp8-block", "qwen3_moe", "hf_fp8-deepseek", 0},
                    Case{"fp8-channel", "qwen3_moe", "llmcompressor-fp8_dynamic", 0},
                    Case{"int8", "qwen3_moe", "llmcompressor-w8a8", 0},
                    Case{"int4-g128", "qwen3_moe", "llmcompressor-w4a16", 128},
                    Case{"int4-g32", "qwen3_moe", "llmcompressor-w4a16-g32", 32},
                    Case{"awq", "qwen3_moe", "gptqmodel-awq-w4-g32", 32},
                    Case{"gptq-asym", "qwen3_moe", "gptqmodel-w4-g32-asym", 32},
                    Case{"mxfp4", "qwen3_moe", "llmcompressor-mxfp4", 32},
                    Case{"mxfp4", "gpt_oss", "gpt_oss-mxfp4", 32},
                    Case{"nvfp4", "qwen3_moe", "modelopt-nvfp4", 16}),
    [](const auto& p) {
      std::string name = p.param.format + "_" + p.param.family;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

// Every one but bf16 is a case above: a new format needs one.
TEST(SynthFormats, AreTheseTen) {
  EXPECT_EQ(cli::synth_format_names(),
            (std::vector<std::string_view>{"bf16", "fp8-block", "fp8-channel", "int8", "int4-g128",
                                           "int4-g32", "awq", "gptq-asym", "mxfp4", "nvfp4"}));
}

TEST(SynthFormats, SideFilesAreThoseOfTheExporter) {
  const auto read = [](const std::string& name) {
    std::ifstream file(golden_root() / "quant" / name);
    return nlohmann::json::parse(file);
  };
  const nlohmann::json config = read("modelopt-nvfp4-mixtral/config.json");
  const auto files = cli::quant_side_files(config.at("quantization_config"));
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(files[0].first, "hf_quant_config.json");
  EXPECT_EQ(nlohmann::json(files[0].second), read("modelopt-nvfp4-mixtral/hf_quant_config.json"));

  const nlohmann::json awq = read("gptqmodel-awq-w4-g32/config.json");
  const auto awq_files = cli::quant_side_files(awq.at("quantization_config"));
  ASSERT_EQ(awq_files.size(), 1U);
  EXPECT_EQ(awq_files[0].first, "quantize_config.json");
  EXPECT_EQ(nlohmann::json(awq_files[0].second), read("gptqmodel-awq-w4-g32/quantize_config.json"));

  EXPECT_TRUE(cli::quant_side_files(cli::w8a8_config({}, 0)).empty());
}

TEST(SynthFormats, AnUnknownNameListsTheKnownOnes) {
  expect_error([] { cli::find_synth_format("fp3", "qwen3_moe"); }, ErrorCode::kInvalidArgument,
               {"fp3", "bf16, fp8-block, fp8-channel, int8, int4-g128", "nvfp4"});
}

TEST(SynthFormats, SizesThatDoNotFitAreRefusedWithTheReason) {
  const auto check = [](const char* format, MatrixSize size) {
    cli::check_fits(cli::find_synth_format(format, "gpt_oss"), size, "w2");
  };
  const MatrixSize gpt_oss{2880, 2880};
  for (const char* format : {"int4-g128", "awq", "gptq-asym"}) {
    expect_error([&] { check(format, gpt_oss); }, ErrorCode::kInvalidArgument,
                 {format, "w2", "[2880, 2880]", "groups of 128"});
  }
  for (const char* format :
       {"bf16", "fp8-block", "fp8-channel", "int8", "int4-g32", "mxfp4", "nvfp4"}) {
    EXPECT_NO_THROW(check(format, gpt_oss)) << format;
  }
  expect_error(
      [&] {
        check("awq", {60, 128});
      },
      ErrorCode::kInvalidArgument, {"awq", "[60, 128]", "words of 8"});
}

// Blocks at the lower and right edge are smaller than 128 x 128 and have a scale all the same.
TEST(SynthFormats, BlocksThatAreCutHaveTheirScales) {
  const auto tensors = cli::find_synth_format("fp8-block", "gpt_oss").tensors({2880, 64}, 0);
  ASSERT_EQ(tensors[1].suffix, "weight_scale_inv");
  EXPECT_EQ(tensors[1].shape, (std::vector<int64_t>{23, 1}));
}

}  // namespace
}  // namespace gantry::test
