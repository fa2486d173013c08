// GGUF files of real quantizers against the output of their block, computed in float32 from what
// ggml's Python package dequantizes (tests/golden/README.md), and what happens when they are
// damaged.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/base/error.h"
#include "kernels/base/float_convert.h"
#include "loader/encodings/ggml_types.h"
#include "runtime/verification.h"
#include "tests/support/detection.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

class GgufGoldenTest : public testing::TestWithParam<Golden> {
 protected:
  GgufGoldenTest() : model(GetParam().directory, /*names_only=*/false) {
    reference = read_reference(reference_path(), model.config());
    intact = read_bytes(file_path());
  }

  [[nodiscard]] std::filesystem::path file_path() const {
    return GetParam().directory / "model.gguf";
  }
  [[nodiscard]] std::filesystem::path reference_path() const {
    return GetParam().directory / "moe_io.safetensors";
  }

  void expect_match(ParallelConfig parallel, Placement placement, ActivationDType activations) {
    VerifySettings settings;
    settings.parallel = parallel;
    settings.placement = placement;
    settings.activations = activations;
    settings.load.threads.count = 2;
    EXPECT_EQ(problem_of(GetParam().directory, reference, settings), "");
  }

  // The damaged file must be noticed: by an error, a finding or its numbers.
  [[nodiscard]] std::string problem_of_damaged(const std::string& bytes) const {
    const TempDir dir;
    dir.write("model.gguf", bytes);
    VerifySettings settings;
    settings.load.threads.count = 1;
    return problem_of(dir.path(), reference, settings);
  }

  // Tensors of the MoE layer.
  [[nodiscard]] std::vector<TensorInfo> block_tensors() const {
    std::vector<TensorInfo> tensors;
    for (const auto& [name, tensor] : model.checkpoint().tensors()) {
      if (model.tensors().names().parse(name).name_class == NameClass::kMoe)
        tensors.push_back(tensor.info);
    }
    return tensors;
  }

  // Where the header says what follows a tensor's name: rank, ne, type, offset.
  [[nodiscard]] size_t behind_name(const std::string& name) const {
    return intact.find(GgufBuilder::text(name)) + 8 + name.size();
  }

  static void put(std::string& bytes, size_t at, const std::string& value) {
    bytes.replace(at, value.size(), value);
  }

  MoeModel model;
  Reference reference;
  std::string intact;
  SeededRng rng;
};

TEST_P(GgufGoldenTest, MatchesTheDequantizedBlockInF32) {
  expect_match({}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GgufGoldenTest, MatchesInBf16) {
  expect_match({}, Placement::kLinear, ActivationDType::kBF16);
}

TEST_P(GgufGoldenTest, MatchesWithTwoTensorParallelRanks) {
  expect_match({.tp_size = 2}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GgufGoldenTest, MatchesWithThreeTensorParallelRanksThatCutBlocks) {
  expect_match({.tp_size = 3}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GgufGoldenTest, MatchesWithTwoExpertParallelRanks) {
  expect_match({.ep_size = 2}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(GgufGoldenTest, MatchesWithExpertsDealtToThreeRanks) {
  expect_match({.ep_size = 3}, Placement::kRoundRobin, ActivationDType::kF32);
}

TEST_P(GgufGoldenTest, DequantizesTheFirstRowsToWithinOneUlp) {
  const SafetensorsFile rows(reference_path());
  for (const std::string projection : {"gate", "up", "down"}) {
    const CheckpointTensor& tensor =
        *model.checkpoint().find("blk.0.ffn_" + projection + "_exps.weight");
    const TensorInfo& expected = *rows.find("blk.0.experts.0." + projection + ".rows16");
    std::vector<float> wanted(static_cast<size_t>(expected.num_elements()));
    rows.read(expected.begin, wanted.data(), expected.num_bytes());
    std::vector<std::byte> bytes(static_cast<size_t>(tensor.info.num_bytes()));
    model.checkpoint().files()[0].read(tensor.info.begin, bytes.data(), tensor.info.num_bytes());

    std::vector<float> found(wanted.size());
    if (const GgmlType* type = find_ggml_type(tensor.info.block_type)) {
      decode_ggml_blocks(*type, bytes.data(),
                         static_cast<int64_t>(wanted.size()) / type->block_elements, found.data());
    } else {
      convert_to_f32(bytes.data(), tensor.info.dtype, static_cast<int64_t>(wanted.size()),
                     found.data());
    }
    size_t wrong = 0;
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < wanted.size(); ++i) {
      const bool same = found[i] == wanted[i] || std::nextafter(found[i], kInfinity) == wanted[i] ||
                        std::nextafter(found[i], -kInfinity) == wanted[i];
      if (!same && ++wrong <= 3) {
        ADD_FAILURE() << projection << " element " << i << ": found " << found[i] << ", expected "
                      << wanted[i];
      }
    }
    EXPECT_EQ(wrong, 0U) << projection << ", of " << wanted.size();
  }
}

// ---- damage --------------------------------------------------------------------------------

TEST_P(GgufGoldenTest, NoticesEveryTensorWithOtherContent) {
  for (const TensorInfo& tensor : block_tensors()) {
    std::string damaged = intact;
    for (int64_t at = tensor.begin; at < tensor.end; ++at)
      damaged[static_cast<size_t>(at)] ^= 0x11;
    EXPECT_NE(problem_of_damaged(damaged), "") << tensor.name;
  }
}

TEST_P(GgufGoldenTest, NoticesEveryRenamedTensor) {
  for (const TensorInfo& tensor : block_tensors()) {
    for (const auto& [from, to] : {std::pair{"ffn_", "ffx_"},
                                   {".weight", ".weighs"},
                                   {"blk.0.", "blk.1."},
                                   {"blk.0.", "blk_0."}}) {
      std::string damaged = intact;
      const size_t name = behind_name(tensor.name) - tensor.name.size();
      const size_t at = damaged.find(from, name);
      ASSERT_LT(at, name + tensor.name.size());
      put(damaged, at, to);
      EXPECT_NE(problem_of_damaged(damaged), "") << tensor.name << " as " << to;
    }
  }
}

TEST_P(GgufGoldenTest, NoticesGateAndUpSwapped) {
  const TensorInfo& gate = model.checkpoint().find("blk.0.ffn_gate_exps.weight")->info;
  const TensorInfo& up = model.checkpoint().find("blk.0.ffn_up_exps.weight")->info;
  ASSERT_EQ(gate.num_bytes(), up.num_bytes());
  std::string damaged = intact;
  std::swap_ranges(damaged.begin() + gate.begin, damaged.begin() + gate.end,
                   damaged.begin() + up.begin);
  EXPECT_NE(problem_of_damaged(damaged), "");
}

TEST_P(GgufGoldenTest, NoticesTwoExpertsSwapped) {
  for (const TensorInfo& tensor : block_tensors()) {
    const int64_t experts = model.config().layers[0].num_experts;
    const auto slab = tensor.num_bytes() / experts;  // the router has one row an expert
    std::string damaged = intact;
    const auto begin = damaged.begin() + tensor.begin;
    std::swap_ranges(begin + slab, begin + 2 * slab, begin + 3 * slab);
    EXPECT_NE(problem_of_damaged(damaged), "") << tensor.name;
  }
}

TEST_P(GgufGoldenTest, NoticesEveryOtherTypeOfATensor) {
  for (const TensorInfo& tensor : block_tensors()) {
    const size_t at = behind_name(tensor.name) + 4 + 8 * tensor.shape.size();
    for (uint32_t id = 0; id < 45; ++id) {
      std::string damaged = intact;
      put(damaged, at, GgufBuilder::bytes_of(id));
      if (damaged == intact) continue;
      EXPECT_NE(problem_of_damaged(damaged), "") << tensor.name << " as " << ggml_type_name(id);
    }
  }
}

TEST_P(GgufGoldenTest, NoticesEveryOtherShapeOfATensor) {
  for (const TensorInfo& tensor : block_tensors()) {
    const size_t at = behind_name(tensor.name);
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      for (const uint64_t size : {0, 1, 2, 3, 5, 32, 128, 512}) {
        std::string damaged = intact;
        put(damaged, at + 4 + 8 * axis, GgufBuilder::bytes_of(size));
        if (damaged == intact) continue;
        EXPECT_NE(problem_of_damaged(damaged), "") << tensor.name << " ne " << axis << " " << size;
      }
    }
  }
}

TEST_P(GgufGoldenTest, NoticesWrongMetadata) {
  const auto expect_noticed = [&](const std::string& key, std::initializer_list<uint32_t> values) {
    const size_t at = intact.find(GgufBuilder::text(key)) + 8 + key.size() + 4;
    ASSERT_LT(at, intact.size()) << key;
    for (const uint32_t value : values) {
      std::string damaged = intact;
      put(damaged, at, GgufBuilder::bytes_of(value));
      ASSERT_NE(damaged, intact) << key;
      EXPECT_NE(problem_of_damaged(damaged), "") << key << " " << value;
    }
  };
  expect_noticed("qwen3moe.expert_count", {0, 1, 3, 5, 0xffffffff});
  expect_noticed("qwen3moe.expert_used_count", {0, 1, 3, 4, 5, 0xffffffff});
  expect_noticed("qwen3moe.embedding_length", {0, 128, 512, 0xffffffff});
  expect_noticed("qwen3moe.expert_feed_forward_length", {0, 128, 512, 0xffffffff});
  expect_noticed("qwen3moe.block_count", {0, 2, 0xffffffff});
}

TEST_P(GgufGoldenTest, NoticesATruncatedFile) {
  for (int i = 0; i < 20; ++i) {
    const auto size = rng.integer(0, static_cast<int64_t>(intact.size()) - 1);
    const std::string damaged = intact.substr(0, static_cast<size_t>(size));
    EXPECT_NE(problem_of_damaged(damaged), "") << size << " bytes, seed " << rng.seed();
  }
}

// Whatever a changed header still means, it is read without harm: problem_of lets no other
// exception through, and what it calls right has the right numbers.
TEST_P(GgufGoldenTest, SurvivesRandomChangesOfItsHeader) {
  const auto header_bytes = block_tensors().front().begin;
  int refused = 0;
  for (int i = 0; i < 100; ++i) {
    std::string damaged = intact;
    const auto at = static_cast<size_t>(rng.integer(0, std::min<int64_t>(header_bytes, 1200)));
    damaged[at] = static_cast<char>(rng.integer(0, 255));
    refused += problem_of_damaged(damaged).empty() ? 0 : 1;
  }
  EXPECT_GT(refused, 30) << "seed " << rng.seed();
}

INSTANTIATE_TEST_SUITE_P(Quantizers, GgufGoldenTest, testing::ValuesIn(gguf_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
