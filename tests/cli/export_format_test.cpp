// What `gantry quantize` and `gantry synth` write for one quantized matrix, against the tensors and
// the quantization_config of real exporters' files (tests/golden/encodings, tests/golden/quant).

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
#include "tools/export_formats.h"
#include "tools/synth_formats.h"

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

class ExportFormatTest : public testing::TestWithParam<Case> {
 protected:
  ExportFormatTest()
      : format(cli::find_export_format(GetParam().format, GetParam().family, GetParam().group)),
        file(golden_root() / "encodings" / (GetParam().golden + ".safetensors")) {}

  [[nodiscard]] Described written_by_exporter(const std::string& projection) const {
    Described tensors;
    for (const TensorInfo& info : file.header().tensors) {
      if (!info.name.starts_with(projection + ".") || info.name.ends_with(".rows16")) continue;
      tensors[info.name.substr(projection.size() + 1)] = {info.dtype, info.shape};
    }
    return tensors;
  }

  [[nodiscard]] Described written_by_us(const MatrixSize& size) const {
    Described tensors;
    for (const ExportTensor& tensor : format.matrix.tensors) {
      tensors[std::string(tensor.suffix)] = {tensor.dtype,
                                             export_shape(format.matrix, tensor, size)};
    }
    return tensors;
  }

  cli::ExportFormat format;
  SafetensorsFile file;
};

TEST_P(ExportFormatTest, HasTheTensorsOfTheExporter) {
  const int64_t hidden = file.find("gate.rows16")->shape[1];
  const int64_t intermediate = file.find("down.rows16")->shape[1];
  EXPECT_EQ(written_by_us({intermediate, hidden}), written_by_exporter("gate"));
  EXPECT_EQ(written_by_us({hidden, intermediate}), written_by_exporter("down"));
}

TEST_P(ExportFormatTest, HasTheConfigOfTheExporter) {
  const auto root = nlohmann::json::parse(file.header().metadata.at("quantization_config"));
  nlohmann::json expected = root.at("quantization_config");
  const std::string router = GetParam().family == "gpt_oss" ? "router" : "gate";
  nlohmann::json found = format.config(format, {"model.layers.0.mlp." + router});
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

TEST_P(ExportFormatTest, FillsTheSameBytesForTheSameSeedOnly) {
  for (const cli::MatrixTensor& tensor : synth_tensors(format, {256, 256})) {
    const int64_t element = tensor.content->element_bytes();
    std::vector<std::byte> first(static_cast<size_t>(element));
    if (tensor.shape.size() >= 2) first.resize(static_cast<size_t>(64 * element));
    std::vector<std::byte> again = first;
    std::vector<std::byte> other = first;
    tensor.content->fill(1, 0, first);
    tensor.content->fill(1, 0, again);
    tensor.content->fill(2, 0, other);
    EXPECT_EQ(first, again) << tensor.suffix;
    const bool symmetric_zeros =
        tensor.suffix == "qzeros" && !format.matrix.quantization.zero_points;
    if (tensor.shape.size() >= 2 && !symmetric_zeros) {
      EXPECT_NE(first, other) << tensor.suffix;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Exporters, ExportFormatTest,
    testing::Values(Case{"fp8-block", "qwen3_moe", "hf_fp8-deepseek", 0},
                    Case{"fp8-channel", "qwen3_moe", "llmcompressor-fp8_dynamic", 0},
                    Case{"fp8-tensor", "qwen3_moe", "modelopt-fp8", 0},
                    Case{"fp8-static", "qwen3_moe", "llmcompressor-fp8_static", 0},
                    Case{"int8", "qwen3_moe", "llmcompressor-w8a8", 0},
                    Case{"int8-g128", "qwen3_moe", "llmcompressor-w8a16", 0},
                    Case{"int4-g128", "qwen3_moe", "llmcompressor-w4a16", 0},
                    Case{"int4-g32", "qwen3_moe", "llmcompressor-w4a16-g32", 0},
                    Case{"int4-asym", "qwen3_moe", "llmcompressor-w4a16_asym", 0},
                    Case{"awq", "qwen3_moe", "gptqmodel-awq-w4-g32", 32},
                    Case{"gptq", "qwen3_moe", "gptqmodel-w4-g128", 0},
                    Case{"gptq-asym", "qwen3_moe", "gptqmodel-w4-g32-asym", 32},
                    Case{"mxfp4", "qwen3_moe", "llmcompressor-mxfp4", 0},
                    Case{"mxfp4", "gpt_oss", "gpt_oss-mxfp4", 0},
                    Case{"mxfp4-a16", "qwen3_moe", "llmcompressor-mxfp4a16", 0},
                    Case{"int4-awq", "qwen3_moe", "modelopt-t4-int4_awq", 0},
                    Case{"mxfp8", "qwen3_moe", "llmcompressor-mxfp8", 0},
                    Case{"nvfp4", "qwen3_moe", "modelopt-nvfp4", 0},
                    Case{"nvfp4-a16", "qwen3_moe", "modelopt-w4a16_nvfp4", 0},
                    Case{"nvfp4-ct", "qwen3_moe", "llmcompressor-nvfp4", 0},
                    Case{"nvfp4-ct-a16", "qwen3_moe", "llmcompressor-nvfp4a16", 0}),
    [](const auto& p) {
      std::string name = p.param.format + "_" + p.param.family;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

// Every one but bf16 is a case above (gptq-int8, of which AutoRound wrote the golden, and
// nvfp4-awq, nvfp4 with the tensor of int4-awq, below): a new format needs one.
TEST(ExportFormats, AreThese) {
  EXPECT_EQ(cli::export_format_names(),
            (std::vector<std::string_view>{
                "bf16",      "fp8-block", "fp8-channel", "fp8-tensor", "fp8-static",  "int8",
                "int8-g128", "int4-g128", "int4-g32",    "int4-asym",  "awq",         "gptq",
                "gptq-asym", "gptq-int8", "mxfp4",       "mxfp4-a16",  "mxfp8",       "nvfp4",
                "nvfp4-a16", "nvfp4-awq", "int4-awq",    "nvfp4-ct",   "nvfp4-ct-a16"}));
}

TEST(ExportFormats, GptqOf8BitsHasTheTensorsOfAutoRound) {
  const cli::ExportFormat format = cli::find_export_format("gptq-int8", "qwen3_moe");
  const SafetensorsFile file(golden_root() / "encodings" / "autoround-auto_gptq-w8a16.safetensors");
  for (const ExportTensor& tensor : format.matrix.tensors) {
    const TensorInfo* info = file.find("gate." + std::string(tensor.suffix));
    ASSERT_NE(info, nullptr) << tensor.suffix;
    EXPECT_EQ(info->dtype, tensor.dtype) << tensor.suffix;
    EXPECT_EQ(info->shape, export_shape(format.matrix, tensor, {128, 256})) << tensor.suffix;
  }
}

TEST(ExportFormats, Nvfp4OfAwqIsNvfp4WithTheTensorOfInt4Awq) {
  const auto tensors = [](const char* format) {
    Described described;
    const cli::ExportFormat found = cli::find_export_format(format, "qwen3_moe");
    for (const ExportTensor& tensor : found.matrix.tensors) {
      described[std::string(tensor.suffix)] = {tensor.dtype,
                                               export_shape(found.matrix, tensor, {128, 256})};
    }
    return described;
  };
  Described expected = tensors("nvfp4");
  expected["pre_quant_scale"] = tensors("int4-awq").at("pre_quant_scale");
  EXPECT_EQ(tensors("nvfp4-awq"), expected);
}

TEST(ExportFormats, SideFilesAreThoseOfTheExporter) {
  const auto read = [](const std::string& name) {
    std::ifstream file(golden_root() / "quant" / name);
    return nlohmann::json::parse(file);
  };
  const nlohmann::json config = read("modelopt-nvfp4-mixtral/config.json");
  const auto files = cli::quant_side_files(config.at("quantization_config"));
  ASSERT_EQ(files.size(), 1U);
  EXPECT_EQ(files[0].first, "hf_quant_config.json");
  EXPECT_EQ(nlohmann::json(files[0].second), read("modelopt-nvfp4-mixtral/hf_quant_config.json"));

  const nlohmann::json int4 = read("modelopt-t4-int4_awq/config.json");
  const auto int4_files = cli::quant_side_files(int4.at("quantization_config"));
  ASSERT_EQ(int4_files.size(), 1U);
  EXPECT_EQ(nlohmann::json(int4_files[0].second),
            read("modelopt-t4-int4_awq/hf_quant_config.json"));

  const nlohmann::json awq = read("gptqmodel-awq-w4-g32/config.json");
  const auto awq_files = cli::quant_side_files(awq.at("quantization_config"));
  ASSERT_EQ(awq_files.size(), 1U);
  EXPECT_EQ(awq_files[0].first, "quantize_config.json");
  EXPECT_EQ(nlohmann::json(awq_files[0].second), read("gptqmodel-awq-w4-g32/quantize_config.json"));

  const cli::ExportFormat int8 = cli::find_export_format("int8", "qwen3_moe");
  EXPECT_TRUE(cli::quant_side_files(int8.config(int8, {})).empty());
}

TEST(ExportFormats, AnUnknownNameListsTheKnownOnes) {
  expect_error([] { cli::find_export_format("fp3", "qwen3_moe"); }, ErrorCode::kInvalidArgument,
               {"fp3", "bf16, fp8-block, fp8-channel, fp8-tensor, fp8-static, int8", "nvfp4"});
}

TEST(ExportFormats, SizesThatDoNotFitAreRefusedWithTheReason) {
  const auto check = [](const char* format, MatrixSize size) {
    cli::check_fits(cli::find_export_format(format, "gpt_oss"), size, "w2");
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
TEST(ExportFormats, BlocksThatAreCutHaveTheirScales) {
  const MatrixExport format = cli::find_export_format("fp8-block", "gpt_oss").matrix;
  ASSERT_EQ(format.tensors[1].suffix, "weight_scale_inv");
  EXPECT_EQ(export_shape(format, format.tensors[1], {2880, 64}), (std::vector<int64_t>{23, 1}));
}

}  // namespace
}  // namespace gantry::test
