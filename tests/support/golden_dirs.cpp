#include "tests/support/golden_dirs.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace gantry::test {
namespace {

void add_goldens(const std::filesystem::path& root, const std::string& prefix, const char* model,
                 std::vector<Golden>& goldens) {
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (!std::filesystem::exists(entry.path() / "moe_io.safetensors") ||
        !std::filesystem::exists(entry.path() / model)) {
      continue;
    }
    std::string name = prefix + entry.path().filename().string();
    std::replace_if(
        name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
    goldens.push_back({entry.path(), name});
  }
}

}  // namespace

std::filesystem::path golden_root() {
  // Programs that were carried to another machine find the tree by its path there.
  const char* elsewhere = std::getenv("GANTRY_TEST_GOLDEN_ROOT");
  return elsewhere != nullptr ? elsewhere : GANTRY_TEST_GOLDEN_ROOT;
}

namespace {

std::vector<Golden> goldens_of(const std::string& folder, const char* variable, const char* model) {
  std::vector<Golden> goldens;
  add_goldens(golden_root() / folder, "", model, goldens);
  if (const char* more = std::getenv(variable)) add_goldens(more, "more_", model, goldens);
  std::sort(goldens.begin(), goldens.end(),
            [](const Golden& a, const Golden& b) { return a.name < b.name; });
  return goldens;
}

}  // namespace

std::vector<Golden> family_goldens() {
  return goldens_of("families", "GANTRY_GOLDEN_DIR", "config.json");
}

std::vector<Golden> quant_goldens() {
  return goldens_of("quant", "GANTRY_QUANT_DIR", "config.json");
}

std::vector<Golden> gguf_goldens() { return goldens_of("gguf", "GANTRY_QUANT_DIR", "model.gguf"); }

std::vector<Golden> all_goldens() {
  std::vector<Golden> all = family_goldens();
  for (const std::vector<Golden>& more : {quant_goldens(), gguf_goldens()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace gantry::test
