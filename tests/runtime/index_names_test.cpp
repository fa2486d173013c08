#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "runtime/moe_model.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"

// Config and index files of published checkpoints: every name must be accounted for by names alone,
// and one that is removed or altered must be named.

namespace gantry::test {
namespace {

class IndexNamesTest : public testing::TestWithParam<std::string> {
 protected:
  [[nodiscard]] std::filesystem::path directory() const {
    return golden_root() / "indexes" / GetParam();
  }
  [[nodiscard]] nlohmann::json index() const {
    return nlohmann::json::parse(read_bytes(directory() / "model.safetensors.index.json"));
  }
  // Opens the index with other names.
  MoeModel open_with(const nlohmann::json& changed) {
    temp_.write("config.json", read_bytes(directory() / "config.json"));
    temp_.write("model.safetensors.index.json", changed.dump());
    return MoeModel(temp_.path(), /*names_only=*/true);
  }
  // A random tensor of a routed expert.
  std::string expert_name(const nlohmann::json& index) {
    const MoeModel model(directory(), /*names_only=*/true);
    std::vector<std::string> names;
    for (const auto& [name, file] : index["weight_map"].items()) {
      const ParsedName parsed = model.tensors().names().parse(name);
      const bool expert = parsed.ref.part == Part::kW1 || parsed.ref.part == Part::kW13 ||
                          parsed.ref.part == Part::kW2 || parsed.ref.part == Part::kW3;
      if (parsed.name_class == NameClass::kMoe && expert) names.push_back(name);
    }
    return names[static_cast<size_t>(rng_.integer(0, static_cast<int64_t>(names.size()) - 1))];
  }

  TempDir temp_;
  SeededRng rng_;
};

TEST_P(IndexNamesTest, AccountsForEveryName) {
  MoeModel model(directory(), /*names_only=*/true);
  EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
  const NameCounts& counts = model.tensors().counts();
  EXPECT_EQ(counts.total, static_cast<int64_t>(index()["weight_map"].size()));
  EXPECT_EQ(counts.total, counts.expert + counts.layer + counts.model + counts.auxiliary +
                              counts.ignored + counts.unknown);
  EXPECT_EQ(counts.unknown, 0);
  EXPECT_GT(counts.expert, 0);
}

TEST_P(IndexNamesTest, NamesAnExpertTensorThatIsMissing) {
  for (int i = 0; i < 10; ++i) {
    nlohmann::json changed = index();
    const std::string name = expert_name(changed);
    changed["weight_map"].erase(name);
    MoeModel model = open_with(changed);
    ASSERT_FALSE(model.report().ok()) << name;
    EXPECT_EQ(model.report().findings()[0].tensor, name);
  }
}

TEST_P(IndexNamesTest, NamesAnExpertTensorThatIsAltered) {
  for (int i = 0; i < 10; ++i) {
    nlohmann::json changed = index();
    const std::string name = expert_name(changed);
    std::string altered = name;
    const auto at = static_cast<size_t>(rng_.integer(0, static_cast<int64_t>(name.size()) - 1));
    altered[at] = altered[at] == 'q' ? 'Q' : 'q';
    changed["weight_map"][altered] = changed["weight_map"][name];
    changed["weight_map"].erase(name);
    MoeModel model = open_with(changed);
    const std::string text = summarize(model.report(), 50);
    ASSERT_FALSE(model.report().ok()) << altered;
    EXPECT_NE(text.find(name), std::string::npos) << altered << "\n" << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Published, IndexNamesTest,
                         testing::Values("granite-3.1-1b-a400m", "qwen3.5-18b-reap-a3b",
                                         "wizardlm-2-8x22b"),
                         [](const auto& published) {
                           std::string name = published.param;
                           std::replace_if(
                               name.begin(), name.end(),
                               [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace gantry::test
