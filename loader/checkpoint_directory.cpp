// Which files of a directory make up the checkpoint, and which symbolic links are followed.

#include "loader/checkpoint_directory.h"

#include <algorithm>
#include <array>
#include <system_error>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kIndexSuffix = ".safetensors.index.json";
constexpr std::string_view kHuggingFaceIndex = "model.safetensors.index.json";

bool is_pickle(std::string_view name) {
  constexpr std::array<std::string_view, 4> kSuffixes = {".bin", ".pt", ".pth", ".ckpt"};
  return std::any_of(kSuffixes.begin(), kSuffixes.end(),
                     [&](std::string_view suffix) { return name.ends_with(suffix); });
}

/// The index to read among those found, which are sorted.
std::optional<std::string> choose_index(const std::vector<std::string>& indexes,
                                        const fs::path& directory) {
  if (indexes.empty()) return std::nullopt;
  if (indexes.size() == 1) return indexes.front();
  GANTRY_CHECK(std::find(indexes.begin(), indexes.end(), kHuggingFaceIndex) != indexes.end(),
               ErrorCode::kFormat, "{}: expected one index, found {}: {}", directory.string(),
               indexes.size(), quote_names(indexes));
  log(LogLevel::kInfo, "{}: reading {}, not the other indexes of {}", directory.string(),
      kHuggingFaceIndex, quote_names(indexes));
  return std::string(kHuggingFaceIndex);
}

/// True if `path` lies under `directory`; both canonical.
bool is_inside(const fs::path& path, const fs::path& directory) {
  const auto [mismatch, rest] =
      std::mismatch(directory.begin(), directory.end(), path.begin(), path.end());
  return mismatch == directory.end() && rest != path.end();
}

fs::path canonical_path(const fs::path& path) {
  std::error_code error;
  fs::path result = fs::canonical(path, error);
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot open: {}", path.string(), error.message());
  return result;
}

}  // namespace

CheckpointDirectory list_checkpoint_directory(const fs::path& directory) {
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot list the checkpoint directory: {}",
               directory.string(), error.message());
  CheckpointDirectory listing{
      .path = directory, .safetensors = {}, .index = {}, .gguf = {}, .pickles = {}};
  std::vector<std::string> indexes;
  for (; entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (name.starts_with('.') || name == kReferenceSidecar) continue;
    if (name.ends_with(".safetensors")) listing.safetensors.push_back(name);
    if (name.ends_with(".gguf")) listing.gguf.push_back(name);
    if (name.ends_with(kIndexSuffix)) indexes.push_back(name);
    if (is_pickle(name)) listing.pickles.push_back(name);
  }
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot list the checkpoint directory: {}",
               directory.string(), error.message());
  std::sort(listing.safetensors.begin(), listing.safetensors.end());
  std::sort(listing.gguf.begin(), listing.gguf.end());
  std::sort(listing.pickles.begin(), listing.pickles.end());
  std::sort(indexes.begin(), indexes.end());
  listing.index = choose_index(indexes, directory);
  return listing;
}

fs::path resolve_inside(const fs::path& directory, std::string_view name) {
  fs::path path = directory / name;
  std::error_code error;
  if (!fs::is_symlink(path, error)) return path;  // what else is wrong with it, opening will say
  const fs::path target = canonical_path(path);
  const fs::path root = canonical_path(directory);
  const fs::path blobs = fs::weakly_canonical(root / ".." / ".." / "blobs", error);
  GANTRY_CHECK(is_inside(target, root) || (!error && is_inside(target, blobs)), ErrorCode::kFormat,
               "{}: expected a file of the checkpoint, found a symbolic link to {}, which is "
               "neither inside the directory nor in the Hugging Face cache's ../../blobs",
               path.string(), target.string());
  return path;
}

}  // namespace gantry
