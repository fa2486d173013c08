#include "loader/relayout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/memory_sink.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

namespace fs = std::filesystem;

using Tensors = std::map<std::string, MutableCheckpoint::Tensor>;

/// A checkpoint with config and map, as the commands open it.
struct Opened {
  explicit Opened(const fs::path& directory)
      : checkpoint(Checkpoint::open(directory)),
        config(
            read_moe_config(checkpoint.config_text(), "config.json", checkpoint.quant_sidecars())),
        map(TensorMap::build(checkpoint, config, report)) {}

  Checkpoint checkpoint;
  MoeModelConfig config;
  LoadReport report;
  TensorMap map;
};

/// What the config of packed MXFP4 says, as compressed-tensors reads it.
constexpr std::string_view kPackedConfig = R"({"quant_method": "compressed-tensors",
  "format": "mxfp4-pack-quantized", "ignore": ["lm_head"],
  "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null, "weights":
  {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": true}}}})";

std::string config_of(const std::string& text, const RelayoutPlan& plan) {
  if (!plan.mxfp4) return text;
  auto config = nlohmann::ordered_json::parse(text);
  config["quantization_config"] = plan.mxfp4 == Mxfp4Layout::kPacked
                                      ? nlohmann::ordered_json::parse(kPackedConfig)
                                      : nlohmann::ordered_json({{"quant_method", "mxfp4"}});
  return config.dump();
}

MutableCheckpoint convert(const fs::path& directory, SpellingChoice choice,
                          int64_t memory_bytes = int64_t{1} << 20) {
  const Opened opened(directory);
  EXPECT_TRUE(opened.report.ok()) << summarize(opened.report, 5);
  const RelayoutPlan plan = plan_relayout(opened.checkpoint, opened.config, opened.map, choice);
  MemorySink sink(plan);
  const RelayoutStats stats = run_relayout(
      opened.checkpoint, plan, sink,
      {.threads = {.count = 2, .executor = {}}, .memory_bytes = memory_bytes, .progress = {}});
  EXPECT_EQ(sink.written_bytes, sink.expected_bytes);
  EXPECT_LE(stats.peak_buffer_bytes, memory_bytes);
  sink.checkpoint.config = config_of(opened.checkpoint.config_text(), plan);
  return sink.checkpoint;
}

/// What differs, in words; empty if nothing does.
std::string difference(const Tensors& found, const Tensors& expected) {
  for (const auto& [name, tensor] : expected) {
    const auto other = found.find(name);
    if (other == found.end()) return name + " is missing";
    if (other->second.dtype != tensor.dtype) return name + " has another dtype";
    if (other->second.shape != tensor.shape) return name + " has another shape";
    if (other->second.bytes != tensor.bytes) return name + " has other bytes";
  }
  for (const auto& [name, tensor] : found) {
    if (!expected.contains(name)) return name + " is too much";
  }
  return "";
}

constexpr std::array<SpellingChoice, 4> kChoices = {
    SpellingChoice::kPerExpert, SpellingChoice::kFused, SpellingChoice::kOriginal,
    SpellingChoice::kVllm};

class RelayoutFamilyTest : public testing::TestWithParam<Golden> {};

// Every spelling gives every other one bit for bit, and the golden is one of them.
TEST_P(RelayoutFamilyTest, SpellingsGiveEachOtherBitForBit) {
  const TempDir dir;
  std::map<SpellingChoice, Tensors> spelled;
  const Tensors golden = MutableCheckpoint::read(GetParam().directory).tensors;
  bool golden_is_one = false;
  for (const SpellingChoice choice : kChoices) {
    const MutableCheckpoint result = convert(GetParam().directory, choice);
    if (choice == SpellingChoice::kPerExpert || choice == SpellingChoice::kFused) {
      result.write(dir / to_string(choice));
    }
    golden_is_one = golden_is_one || difference(result.tensors, golden).empty();
    spelled[choice] = result.tensors;
  }
  EXPECT_TRUE(golden_is_one);
  EXPECT_NE(difference(spelled[SpellingChoice::kPerExpert], spelled[SpellingChoice::kFused]), "");
  constexpr std::array<std::pair<SpellingChoice, SpellingChoice>, 4> kSteps = {
      {{SpellingChoice::kPerExpert, SpellingChoice::kFused},
       {SpellingChoice::kPerExpert, SpellingChoice::kOriginal},
       {SpellingChoice::kFused, SpellingChoice::kPerExpert},
       {SpellingChoice::kFused, SpellingChoice::kVllm}}};
  for (const auto& [from, to] : kSteps) {
    EXPECT_EQ(difference(convert(dir / to_string(from), to).tensors, spelled[to]), "")
        << to_string(from) << " to " << to_string(to);
  }
}

// The smallest memory in which a row of every tensor fits: tiles of one row and odd remainders.
TEST_P(RelayoutFamilyTest, TilesOfAnySizeGiveTheSame) {
  for (const SpellingChoice choice : {SpellingChoice::kPerExpert, SpellingChoice::kFused}) {
    const Tensors whole = convert(GetParam().directory, choice).tensors;
    const int64_t memory = 40000;
    EXPECT_EQ(difference(convert(GetParam().directory, choice, memory).tensors, whole), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, RelayoutFamilyTest, testing::ValuesIn(family_goldens()),
                         [](const auto& instance) { return instance.param.name; });

struct Pair {
  std::string plain;
  std::string fused;
};

class RelayoutPairTest : public testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] fs::path plain() const { return golden_root() / "families" / GetParam(); }
  [[nodiscard]] fs::path fused() const {
    return golden_root() / "families" / (GetParam() + "-fused");
  }
};

TEST_P(RelayoutPairTest, UnfusingGivesTheFileThatTransformersWrites) {
  const MutableCheckpoint result = convert(fused(), SpellingChoice::kPerExpert);
  EXPECT_EQ(difference(result.tensors, MutableCheckpoint::read(plain()).tensors), "");
  if (!fs::exists(plain() / "model.safetensors")) return;  // in several files
  const TempDir dir;
  result.write(dir / "out");
  EXPECT_TRUE(read_bytes(dir / "out/model.safetensors") ==
              read_bytes(plain() / "model.safetensors"));
}

TEST_P(RelayoutPairTest, FusingGivesTheFileThatTransformersWrites) {
  const MutableCheckpoint result = convert(plain(), SpellingChoice::kFused);
  EXPECT_EQ(difference(result.tensors, MutableCheckpoint::read(fused()).tensors), "");
  const TempDir dir;
  result.write(dir / "out");
  EXPECT_TRUE(read_bytes(dir / "out/model.safetensors") ==
              read_bytes(fused() / "model.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(Transformers, RelayoutPairTest,
                         testing::Values("mixtral", "olmoe", "qwen3_moe", "qwen3_5_moe"));

TEST(RelayoutQuantTest, FusedBlockFp8IsSplitWithItsScalesAndJoinedAgain) {
  const fs::path golden = golden_root() / "quant/hf_fp8-block-fused";
  const MutableCheckpoint split = convert(golden, SpellingChoice::kPerExpert);
  const MutableCheckpoint source = MutableCheckpoint::read(golden);
  const auto& up = split.tensors.at("model.layers.0.mlp.experts.3.up_proj.weight_scale_inv");
  EXPECT_EQ(up.shape, (std::vector<int64_t>{1, 2}));
  // Expert 3 of [4, 2, 2] f32: the second row of blocks.
  const auto& both = source.tensors.at("model.layers.0.mlp.experts.gate_up_proj_scale_inv").bytes;
  EXPECT_TRUE(std::equal(up.bytes.begin(), up.bytes.end(), both.begin() + (3 * 4 + 2) * 4));
  const TempDir dir;
  split.write(dir / "split");
  EXPECT_TRUE(Opened(dir / "split").report.ok());
  EXPECT_EQ(difference(convert(dir / "split", SpellingChoice::kFused).tensors, source.tensors), "");
}

TEST(RelayoutQuantTest, BlocksThatReachAcrossGateAndUpAreRefusedByName) {
  const TempDir dir;
  MutableCheckpoint golden = MutableCheckpoint::read(golden_root() / "quant/hf_fp8-block-fused");
  const std::string key = "\"weight_block_size\"";
  const size_t begin = golden.config.find(key);
  ASSERT_NE(begin, std::string::npos);
  const size_t end = golden.config.find(']', begin);
  golden.config.replace(begin, end - begin + 1, key + ": [256, 128]");
  golden.write(dir / "in");
  expect_error([&] { (void)convert(dir / "in", SpellingChoice::kPerExpert); },
               ErrorCode::kUnsupported, {"gate_up_proj", "gate and up"});
}

/// Transformers drops an axis of one block of scales; fused tensors need it, so it comes back.
Tensors with_block_axes(Tensors tensors) {
  for (auto& [name, tensor] : tensors) {
    if (name.ends_with("weight_scale_inv") && tensor.shape.size() == 2) {
      std::erase(tensor.shape, 1);
      if (tensor.shape.empty()) tensor.shape = {1};
    }
  }
  return tensors;
}

/// Quantized goldens whose matrices stand alone: unfusing them is the identity; fusing is refused,
/// by name, wherever the fused spelling has no place for one of their tensors.
class RelayoutQuantGoldenTest : public testing::TestWithParam<Golden> {};

TEST_P(RelayoutQuantGoldenTest, KeepsEveryByteOrRefusesByName) {
  const MutableCheckpoint source = MutableCheckpoint::read(GetParam().directory);
  for (const SpellingChoice choice : {SpellingChoice::kPerExpert, SpellingChoice::kFused}) {
    MutableCheckpoint result;
    try {
      result = convert(GetParam().directory, choice);
    } catch (const Error& error) {
      EXPECT_EQ(to_string(error.code()), to_string(ErrorCode::kUnsupported)) << error.what();
      EXPECT_NE(std::string(error.what()).find("experts"), std::string::npos) << error.what();
      continue;
    }
    if (difference(result.tensors, source.tensors).empty()) continue;
    const TempDir dir;
    result.write(dir / "out");
    const Opened opened(dir / "out");
    EXPECT_TRUE(opened.report.ok()) << summarize(opened.report, 5);
    const SpellingChoice back =
        choice == SpellingChoice::kFused ? SpellingChoice::kPerExpert : SpellingChoice::kFused;
    EXPECT_EQ(difference(with_block_axes(convert(dir / "out", back).tensors),
                         with_block_axes(source.tensors)),
              "");
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, RelayoutQuantGoldenTest, testing::ValuesIn(quant_goldens()),
                         [](const auto& instance) { return instance.param.name; });

TEST(RelayoutMxfp4Test, BlocksOfGptOssBecomePackedMatricesAndBlocksAgain) {
  const fs::path golden = golden_root() / "quant/gpt_oss-mxfp4";
  const MutableCheckpoint source = MutableCheckpoint::read(golden);
  const MutableCheckpoint split = convert(golden, SpellingChoice::kPerExpert);
  const std::string layer = "model.layers.0.mlp.experts.";
  const auto& up = split.tensors.at(layer + "3.up_proj.weight_packed");
  EXPECT_EQ(up.shape, (std::vector<int64_t>{128, 128}));
  // Row 5 of up is row 11 of the interleaved rows, expert 3's after 3 x 256 others.
  const auto& both = source.tensors.at(layer + "gate_up_proj_blocks").bytes;
  EXPECT_TRUE(std::equal(up.bytes.begin() + 5 * 128, up.bytes.begin() + 6 * 128,
                         both.begin() + (3 * 256 + 11) * 128));
  const auto& scale = split.tensors.at(layer + "1.down_proj.weight_scale");
  EXPECT_EQ(scale.shape, (std::vector<int64_t>{256, 4}));
  const TempDir dir;
  split.write(dir / "split");
  EXPECT_EQ(difference(convert(dir / "split", SpellingChoice::kFused).tensors, source.tensors), "");
  // A row of gate and up in turn is 256 bytes: tiles of a few rows give the same.
  EXPECT_EQ(
      difference(convert(dir / "split", SpellingChoice::kFused, 40000).tensors, source.tensors),
      "");
}

TEST(RelayoutMxfp4Test, TensorsOfTheWrongSizeAreRefusedByName) {
  const TempDir dir;
  MutableCheckpoint golden = MutableCheckpoint::read(golden_root() / "quant/gpt_oss-mxfp4");
  auto& scales = golden.tensors.at("model.layers.0.mlp.experts.down_proj_scales");
  scales.shape.back() /= 2;
  scales.bytes.resize(scales.bytes.size() / 2);
  golden.write(dir / "in");
  expect_error([&] { (void)convert(dir / "in", SpellingChoice::kPerExpert); }, ErrorCode::kFormat,
               {"down_proj_scales", "4096", "[4, 256, 2]"});
}

TEST(RelayoutMxfp4Test, AMixtureWithOtherExpertsIsRefusedByName) {
  const TempDir dir;
  MutableCheckpoint golden = MutableCheckpoint::read(golden_root() / "quant/gpt_oss-mxfp4");
  const std::string down = "model.layers.0.mlp.experts.down_proj";
  golden.tensors.erase(down + "_blocks");
  golden.tensors.erase(down + "_scales");
  golden.tensors[down] = {
      DType::kBF16, {4, 128, 256}, std::vector<std::byte>(size_t{4} * 128 * 256 * 2)};
  golden.write(dir / "in");
  expect_error([&] { (void)convert(dir / "in", SpellingChoice::kPerExpert); },
               ErrorCode::kUnsupported, {down, "not MXFP4"});
}

TEST(RelayoutMxfp4Test, QuantizedInputsHaveNoPlaceInBlocks) {
  const TempDir dir;
  MutableCheckpoint split =
      convert(golden_root() / "quant/gpt_oss-mxfp4", SpellingChoice::kPerExpert);
  const std::string none = "\"input_activations\":null";
  const size_t at = split.config.find(none);
  ASSERT_NE(at, std::string::npos);
  split.config.replace(at, none.size(),
                       R"("input_activations":{"num_bits": 4, "type": "float",
                       "strategy": "group", "group_size": 32, "dynamic": true})");
  split.write(dir / "in");
  expect_error([&] { (void)convert(dir / "in", SpellingChoice::kFused); }, ErrorCode::kUnsupported,
               {"weight_packed", "quantized inputs"});
}

TEST(RelayoutTest, ARowThatDoesNotFitIntoTheMemoryIsRefused) {
  expect_error(
      [] { (void)convert(golden_root() / "families/gpt_oss", SpellingChoice::kPerExpert, 200); },
      ErrorCode::kOutOfMemory, {"memory limit"});
}

TEST(RelayoutTest, ExpertsOfDifferentTypesCannotShareATensor) {
  const TempDir dir;
  MutableCheckpoint golden = MutableCheckpoint::read(golden_root() / "families/qwen3_moe");
  auto& tensor = golden.tensors.at("model.layers.0.mlp.experts.1.up_proj.weight");
  tensor.dtype = DType::kF16;
  golden.write(dir / "in");
  // The map refuses it already; the plan must not rely on that.
  const Opened damaged(dir / "in");
  EXPECT_FALSE(damaged.report.ok());
  expect_error(
      [&] {
        (void)plan_relayout(damaged.checkpoint, damaged.config, damaged.map,
                            SpellingChoice::kFused);
      },
      ErrorCode::kUnsupported, {"experts.1.up_proj"});
}

}  // namespace
}  // namespace gantry::test
