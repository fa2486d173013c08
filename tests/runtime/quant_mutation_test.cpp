// Damages quantized checkpoints of real exporters in every way of tests/support/quant_mutations.cpp
// and asks the product whether it notices. Whether a damage changes a weight is decided by decoding
// the experts' matrices on their own; the numbers are compared with the exporters' reference.

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <map>

#include "tests/support/decoded_weights.h"
#include "tests/support/detection.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/quant_mutations.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

const std::vector<ParallelConfig>& layouts() {
  static const std::vector<ParallelConfig> list = {
      {}, {.tp_size = 3}, {.ep_size = 2}, {.tp_size = 2, .ep_size = 2}};
  return list;
}

class QuantMutationTest : public testing::TestWithParam<Golden> {
 protected:
  const MoeModel model{GetParam().directory, /*names_only=*/false};
  const Reference reference =
      read_reference(GetParam().directory / "moe_io.safetensors", model.config());
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  const TempDir temp;
  SeededRng rng;
};

TEST_P(QuantMutationTest, EveryDamageThatChangesAWeightIsNoticed) {
  const auto weights = decode_weights(intact, model.tensors(), model.config());
  ASSERT_TRUE(weights.has_value());
  ASSERT_EQ(stage_of_detection(GetParam().directory, reference, {}), "")
      << "a false alarm on the intact checkpoint";

  std::map<std::string, int> stages;
  int tried = 0;
  int changed = 0;
  int required = 0;  // changed a weight, or must be noticed all the same
  for (int trial = 0; trial < trials(); ++trial) {
    for (const QuantMutation& mutation : quant_mutations()) {
      MutableCheckpoint damaged = intact;
      const Mutated mutated = mutation.apply(damaged, model, rng);
      if (!mutated.applied) continue;
      const auto after = decode_weights(damaged, model.tensors(), model.config());
      const bool changes = !after.has_value() || !same_weights(*weights, *after);
      damaged.write(temp / "damaged");
      const ParallelConfig& parallel = layouts()[static_cast<size_t>(tried) % layouts().size()];
      const std::string stage = stage_of_detection(temp / "damaged", reference, parallel);
      ++tried;
      changed += changes ? 1 : 0;
      ++stages[stage];
      if (!changes && !mutation.always) continue;
      ++required;
      EXPECT_NE(stage, "") << mutation.name << ": " << mutated.what << " (seed " << rng.seed()
                           << ", " << describe(parallel) << ")";
    }
  }
  EXPECT_GT(required, 0);
  std::string text;
  for (const auto& [stage, count] : stages) {
    if (stage.empty()) continue;
    if (!text.empty()) text += ", ";
    text += std::to_string(count);
    text += " by ";
    text += stage;
  }
  std::printf(
      "%s: %d mutations tried, %d changed a weight, %d had to be noticed; noticed %d (%s)\n",
      GetParam().name.c_str(), tried, changed, required, tried - stages[""], text.c_str());
}

TEST_P(QuantMutationTest, EveryTruncationIsNoticed) {
  const std::filesystem::path directory = temp / "cut";
  intact.write(directory);
  const std::filesystem::path file = directory / "model.safetensors";
  const std::string bytes = read_bytes(file);
  for (int i = 0; i < 8 * trials(); ++i) {
    const int64_t length = rng.integer(0, static_cast<int64_t>(bytes.size()) - 1);
    std::ofstream(file, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(length));
    EXPECT_NE(stage_of_detection(directory, reference, {}), "")
        << "cut at " << length << " of " << bytes.size();
  }
}

INSTANTIATE_TEST_SUITE_P(Exporters, QuantMutationTest, testing::ValuesIn(quant_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
