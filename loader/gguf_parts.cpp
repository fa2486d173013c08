// A GGUF model is one file or several, whose metadata count them: split.count, split.no from 0,
// split.tensors.count. Only the first has the rest of the metadata.

#include "loader/gguf_parts.h"

#include <algorithm>
#include <cctype>
#include <system_error>

#include "kernels/base/check.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxParts = 10000;

int64_t integer_or(const GgufFile& file, std::string_view key, int64_t fallback) {
  const auto found = file.header().metadata.find(key);
  if (found == file.header().metadata.end()) return fallback;
  const auto* value = std::get_if<int64_t>(&found->second);
  GANTRY_CHECK(value != nullptr, ErrorCode::kFormat, "{}: {}: expected an integer",
               file.path().string(), key);
  return *value;
}

// Puts the parts in order; throws unless they are all parts of one model.
std::vector<GgufFile> in_order(std::vector<GgufFile> files, const fs::path& directory) {
  const auto count = static_cast<int64_t>(files.size());
  std::vector<std::string> names;
  for (const GgufFile& file : files)
    names.push_back(file.path().filename().string());
  std::stable_sort(files.begin(), files.end(), [](const GgufFile& a, const GgufFile& b) {
    return integer_or(a, "split.no", 0) < integer_or(b, "split.no", 0);
  });
  int64_t tensors = 0;
  for (int64_t i = 0; i < count; ++i) {
    const GgufFile& file = files[static_cast<size_t>(i)];
    const int64_t declared = std::max<int64_t>(1, integer_or(file, "split.count", 1));
    const int64_t number = integer_or(file, "split.no", 0);
    GANTRY_CHECK(declared == count && number == i, ErrorCode::kFormat,
                 "{}: expected one GGUF file or the {} parts of one, found {}, of which {} says "
                 "that it is part {} of {}; name the file to read",
                 directory.string(), declared, quote_names(names), file.path().filename().string(),
                 number + 1, declared);
    tensors += static_cast<int64_t>(file.header().tensors.size());
  }
  const int64_t declared = integer_or(files.front(), "split.tensors.count", tensors);
  GANTRY_CHECK(declared == tensors, ErrorCode::kFormat,
               "{}: expected {} tensors in its parts together, found {}",
               files.front().path().string(), declared, tensors);
  return files;
}

// "NAME-00002-of-00003.gguf" without "00002-of-00003.gguf", or nothing.
std::string stem_of_part(const std::string& name) {
  constexpr std::string_view kShape = "00000-of-00000.gguf";
  if (name.size() <= kShape.size()) return "";
  const std::string end = name.substr(name.size() - kShape.size());
  for (size_t i = 0; i < kShape.size(); ++i) {
    const bool fits = kShape[i] == '0' ? std::isdigit(static_cast<unsigned char>(end[i])) != 0
                                       : kShape[i] == end[i];
    if (!fits) return "";
  }
  return name.substr(0, name.size() - kShape.size());
}

}  // namespace

bool is_gguf_path(const fs::path& path) {
  std::error_code error;
  return path.extension() == ".gguf" && !fs::is_directory(path, error);
}

fs::path directory_of(const fs::path& file) {
  return file.has_parent_path() ? file.parent_path() : fs::path(".");
}

bool is_gguf_directory(const CheckpointDirectory& listing) {
  return listing.safetensors.empty() && !listing.index && !listing.gguf.empty();
}

std::vector<GgufFile> open_gguf_files(const CheckpointDirectory& listing) {
  std::vector<GgufFile> files;
  for (const std::string& name : listing.gguf)
    files.emplace_back(resolve_inside(listing.path, name));
  return in_order(std::move(files), listing.path);
}

std::vector<GgufFile> open_gguf_file(const fs::path& path) {
  std::vector<GgufFile> files;
  files.emplace_back(path);
  const int64_t count = integer_or(files.front(), "split.count", 1);
  const std::string name = path.filename().string();
  const std::string stem = stem_of_part(name);
  GANTRY_CHECK(count <= 1 || (!stem.empty() && count <= kMaxParts), ErrorCode::kFormat,
               "{}: expected the name NAME-00001-of-{:05}.gguf of one of {} parts", path.string(),
               count, count);
  for (int64_t part = 1; part <= count && count > 1; ++part) {
    const std::string other = fmt::format("{}{:05}-of-{:05}.gguf", stem, part, count);
    if (other != name) files.emplace_back(resolve_inside(directory_of(path), other));
  }
  return in_order(std::move(files), directory_of(path));
}

}  // namespace gantry
