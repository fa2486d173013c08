#include "loader/carried_files.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <system_error>

#include "kernels/base/check.h"
#include "loader/checkpoint_directory.h"

namespace gantry {
namespace {

namespace fs = std::filesystem;

bool is_weights(const std::string& name) {
  constexpr std::array<std::string_view, 7> kSuffixes = {
      ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".index.json"};
  return std::any_of(kSuffixes.begin(), kSuffixes.end(),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

}  // namespace

std::vector<std::string> carried_files(const fs::path& directory,
                                       std::vector<std::string>* left_out) {
  std::vector<std::string> names;
  std::error_code error;
  auto entry = fs::recursive_directory_iterator(directory, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with('.')) {
      if (entry->is_directory(error)) entry.disable_recursion_pending();
      continue;
    }
    if (!entry->is_regular_file(error)) continue;
    const std::string relative = entry->path().lexically_relative(directory).generic_string();
    if (is_weights(name) && name != kReferenceSidecar) {
      const bool own =
          entry.depth() == 0 && (name.ends_with(".safetensors") || name.ends_with(".index.json"));
      if (!own && left_out != nullptr) left_out->push_back(relative);
      continue;
    }
    names.push_back(relative);
  }
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot list the directory: {}", directory.string(),
               error.message());
  std::sort(names.begin(), names.end());
  return names;
}

void carry_files(const fs::path& directory, CheckpointWriter& writer,
                 const std::set<std::string>& except) {
  for (const std::string& name : carried_files(directory, nullptr)) {
    if (!except.contains(name)) writer.copy_file(resolve_inside(directory, name), name);
  }
}

}  // namespace gantry
