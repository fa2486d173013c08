// Quantized checkpoints by real exporters against the output of their blocks, computed in float32
// from dequantized weights (tests/golden/README.md), and what happens when one of their tensors is
// damaged.

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "kernels/base/error.h"
#include "runtime/verification.h"
#include "tests/support/detection.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

class QuantGoldenTest : public testing::TestWithParam<Golden> {
 protected:
  QuantGoldenTest() {
    const MoeModel model(GetParam().directory, /*names_only=*/false);
    reference = read_reference(GetParam().directory / "moe_io.safetensors", model.config());
  }

  void expect_match(ParallelConfig parallel, Placement placement, ActivationDType activations) {
    VerifySettings settings;
    settings.parallel = parallel;
    settings.placement = placement;
    settings.activations = activations;
    settings.load.threads.count = 2;
    EXPECT_EQ(problem_of(GetParam().directory, reference, settings), "");
  }

  // The damaged checkpoint must be noticed: by a finding, an error or its numbers.
  std::string problem_of_damaged(const MutableCheckpoint& checkpoint) {
    const TempDir dir;
    checkpoint.write(dir.path());
    VerifySettings settings;
    settings.load.threads.count = 1;
    return problem_of(dir.path(), reference, settings);
  }

  Reference reference;
  SeededRng rng;
};

TEST_P(QuantGoldenTest, MatchesTheDequantizedBlockInF32) {
  expect_match({}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(QuantGoldenTest, MatchesInBf16) {
  expect_match({}, Placement::kLinear, ActivationDType::kBF16);
}

TEST_P(QuantGoldenTest, MatchesWithThreeTensorParallelRanksThatCutBlocks) {
  expect_match({.tp_size = 3}, Placement::kLinear, ActivationDType::kF32);
}

TEST_P(QuantGoldenTest, MatchesWithExpertsDealtToThreeRanks) {
  expect_match({.ep_size = 3}, Placement::kRoundRobin, ActivationDType::kF32);
}

TEST_P(QuantGoldenTest, MatchesWithTensorAndExpertParallelRanks) {
  expect_match({.tp_size = 4, .ep_size = 2}, Placement::kLinear, ActivationDType::kF32);
}

// Suffixes that no weight depends on: activation scales, shapes, descriptions.
bool changes_no_weight(const std::string& name) {
  for (const char* part : {"input_scale", "input_global_scale", "input_zero_point", "weight_shape",
                           "weight_format", "quant_state"}) {
    if (name.find(part) != std::string::npos) return true;
  }
  return false;
}

// Tensors of expert 2, or of all experts where they share tensors.
std::vector<std::string> expert_tensors(const MutableCheckpoint& checkpoint) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const bool stacked = name.find("experts.gate_up") != std::string::npos ||
                         name.find("experts.down") != std::string::npos;
    if ((stacked || name.find("experts.2.") != std::string::npos) && !changes_no_weight(name)) {
      names.push_back(name);
    }
  }
  return names;
}

TEST_P(QuantGoldenTest, NoticesEveryMissingTensor) {
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  for (const std::string& name : expert_tensors(intact)) {
    MutableCheckpoint damaged = intact;
    damaged.tensors.erase(name);
    EXPECT_NE(problem_of_damaged(damaged), "") << name;
  }
}

// Every byte of a tensor changed: scales, zero points, codes, group indices alike.
TEST_P(QuantGoldenTest, NoticesEveryTensorWithOtherContent) {
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  for (const std::string& name : expert_tensors(intact)) {
    MutableCheckpoint damaged = intact;
    for (std::byte& byte : damaged.tensors[name].bytes)
      byte ^= std::byte{0x11};
    EXPECT_NE(problem_of_damaged(damaged), "") << name;
  }
}

TEST_P(QuantGoldenTest, NoticesGateAndUpSwapped) {
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  for (const std::string& name : expert_tensors(intact)) {
    for (const auto& [gate, up] : {std::pair{"gate_proj", "up_proj"}, std::pair{".w1.", ".w3."}}) {
      const size_t at = name.find(gate);
      if (at == std::string::npos || name.find("gate_up") != std::string::npos) continue;
      std::string other = name;
      other.replace(at, std::string(gate).size(), up);
      MutableCheckpoint damaged = intact;
      // Scales and zero points may be equal: then the swap changes nothing.
      if (damaged.tensors.at(name).bytes == damaged.tensors.at(other).bytes) continue;
      std::swap(damaged.tensors.at(name).bytes, damaged.tensors.at(other).bytes);
      EXPECT_NE(problem_of_damaged(damaged), "") << name;
    }
  }
}

TEST_P(QuantGoldenTest, NoticesAShapeThatIsTransposed) {
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  for (const std::string& name : expert_tensors(intact)) {
    MutableCheckpoint damaged = intact;
    std::vector<int64_t>& shape = damaged.tensors[name].shape;
    const size_t rank = shape.size();
    // One long axis (a column of scales) means the same either way.
    if (rank < 2 || shape[rank - 1] == shape[rank - 2] ||
        std::min(shape[rank - 1], shape[rank - 2]) == 1)
      continue;
    std::swap(shape[rank - 1], shape[rank - 2]);
    const std::string problem = problem_of_damaged(damaged);
    // A grid of scales is read by its number of elements: a transposed shape with the same bytes is
    // the same grid.
    if (name.find("scale") == std::string::npos) {
      EXPECT_NE(problem, "") << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Exporters, QuantGoldenTest, testing::ValuesIn(quant_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
