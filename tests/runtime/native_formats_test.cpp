// Quantized checkpoints stay codes in memory, and names alone tell whether a quantized matrix is
// complete.

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "runtime/moe_model.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
namespace {

std::vector<Golden> all_quantized() {
  std::vector<Golden> all = quant_goldens();
  const std::vector<Golden> gguf = gguf_goldens();
  all.insert(all.end(), gguf.begin(), gguf.end());
  return all;
}

class NativeFormatsTest : public testing::TestWithParam<Golden> {};

// Codes of 2, 3, 5 and 6 bits take 4 or 8, scales are at most as large as the file's 32 bits for
// them: never more than twice the file. As f32 the experts would be 3.7 times it (8.5 bits) or
// more.
TEST_P(NativeFormatsTest, SlotsAreAboutAsLargeAsTheFile) {
  MoeModel model(GetParam().directory, /*names_only=*/false);
  ASSERT_TRUE(model.report().ok()) << summarize(model.report(), 5);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  for (const MoeLayerSpec& spec : model.config().layers) {
    const ExpertMap experts = ExpertMap::create(spec.num_experts, 1, Placement::kLinear);
    for (const int tp : {1, 2, 3}) {
      const LoadPlan plan = loader.plan(spec.layer, {.tp_size = tp}, experts);
      // Every rank reads whole quantized matrices and owns its part.
      const double file = static_cast<double>(plan.bytes_read) / tp;
      // Shards that cut super-groups have more of them.
      const double most = tp == 1 ? 2.1 : 2.5;
      EXPECT_LE(static_cast<double>(plan.bytes_owned), most * file) << "tp " << tp;
      EXPECT_GE(static_cast<double>(plan.bytes_owned), 0.5 * file) << "tp " << tp;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Exporters, NativeFormatsTest, testing::ValuesIn(all_quantized()),
                         [](const auto& golden) { return golden.param.name; });

// ---- names alone -------------------------------------------------------------------------------

class QuantNamesTest : public testing::TestWithParam<Golden> {
 protected:
  static std::string problem_by_names(const MutableCheckpoint& checkpoint) {
    const TempDir dir;
    checkpoint.write(dir.path());
    MoeModel model(dir.path(), /*names_only=*/true);
    return summarize(model.report(), 1000);
  }

  // What follows "experts.N.PROJECTION." or stands behind a stacked name.
  static std::string suffix_of(const std::string& name) {
    const size_t experts = name.find(".experts.");
    const size_t projection = name.find('.', experts + 9);
    if (projection == std::string::npos) return name.substr(name.rfind('_') + 1);
    const size_t suffix = name.find('.', projection + 1);
    return suffix == std::string::npos ? "" : name.substr(suffix + 1);
  }

  // No weight depends on these, or only their content tells that they are called for.
  static bool is_optional(const std::string& suffix) {
    const std::set<std::string> optional = {"weight_shape", "pre_quant_scale", "bias",
                                            "input_zero_point", "weight_zero_point"};
    return suffix.empty() || optional.contains(suffix) ||
           suffix.find("quant_state") != std::string::npos;
  }
};

TEST_P(QuantNamesTest, AnIntactCheckpointIsComplete) {
  EXPECT_EQ(problem_by_names(MutableCheckpoint::read(GetParam().directory)), "");
}

TEST_P(QuantNamesTest, ATensorThatOneExpertLacksIsNamed) {
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  for (const auto& [name, tensor] : intact.tensors) {
    if (name.find(".experts.2.") == std::string::npos || is_optional(suffix_of(name))) continue;
    MutableCheckpoint damaged = intact;
    damaged.tensors.erase(name);
    const std::string problem = problem_by_names(damaged);
    EXPECT_NE(problem.find(suffix_of(name)), std::string::npos) << name << ": " << problem;
  }
}

// Where all experts lack it, only the config knows.
TEST_P(QuantNamesTest, ATensorThatNoExpertHasIsNamed) {
  const MutableCheckpoint intact = MutableCheckpoint::read(GetParam().directory);
  std::set<std::string> suffixes;
  for (const auto& [name, tensor] : intact.tensors) {
    if (name.find(".experts.") != std::string::npos) suffixes.insert(suffix_of(name));
  }
  // A g_idx in order says nothing, and is called for by desc_act and actorder only.
  const bool ordered = GetParam().name.find("desc_act") != std::string::npos ||
                       GetParam().name.find("actorder_group") != std::string::npos;
  for (const std::string& suffix : suffixes) {
    if (is_optional(suffix) || (suffix == "g_idx" && !ordered)) continue;
    MutableCheckpoint damaged = intact;
    std::erase_if(damaged.tensors, [&](const auto& item) {
      return item.first.find(".experts.") != std::string::npos && suffix_of(item.first) == suffix;
    });
    const std::string problem = problem_by_names(damaged);
    EXPECT_NE(problem.find(suffix), std::string::npos) << suffix << ": " << problem;
  }
}

INSTANTIATE_TEST_SUITE_P(Exporters, QuantNamesTest, testing::ValuesIn(quant_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
