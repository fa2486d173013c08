// Opens a checkpoint directory: finds its files, reads config, index and headers, and checks them
// against each other. Findings of one kind are collected and reported together.

#include "loader/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/checkpoint_directory.h"
#include "loader/file_io.h"
#include "loader/gguf_config.h"
#include "loader/gguf_parts.h"
#include "loader/safetensors_index.h"
#include "loader/strict_json.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

using Tensors = std::map<std::string, CheckpointTensor, std::less<>>;

// Real configs are kilobytes and real indexes tens of megabytes (a quantized model of a trillion
// parameters has about 200,000 tensors of 130 bytes each).
constexpr int64_t kMaxConfigBytes = int64_t{64} << 20;
constexpr int64_t kMaxIndexBytes = int64_t{256} << 20;

std::string read_config(const std::filesystem::path& directory) {
  const auto path = resolve_inside(directory, "config.json");
  std::string text = read_text_file(path, kMaxConfigBytes);
  const auto config = parse_strict_json(text, path.string());
  GANTRY_CHECK(config.is_object(), ErrorCode::kFormat, "{}: expected an object, found {}",
               path.string(), config.type_name());
  return text;
}

std::vector<QuantSidecar> read_quant_sidecars(const std::filesystem::path& directory) {
  std::vector<QuantSidecar> sidecars;
  std::error_code error;
  for (const std::string_view name : quant_sidecar_names()) {
    if (!std::filesystem::exists(directory / name, error)) continue;
    const auto path = resolve_inside(directory, name);
    sidecars.push_back({std::string(name), read_text_file(path, kMaxConfigBytes)});
  }
  return sidecars;
}

std::optional<SafetensorsIndex> read_index(const CheckpointDirectory& listing) {
  if (!listing.index) return std::nullopt;
  const auto path = resolve_inside(listing.path, *listing.index);
  return parse_safetensors_index(read_text_file(path, kMaxIndexBytes), path.string());
}

/// The files that the index names, sorted.
std::vector<std::string> shards_of(const SafetensorsIndex& index) {
  std::set<std::string> shards;
  for (const auto& [name, shard] : index.weight_map)
    shards.insert(shard);
  return {shards.begin(), shards.end()};
}

/// The shards to read: those of the index, or without one all safetensors files.
std::vector<std::string> choose_shards(const CheckpointDirectory& listing,
                                       const std::optional<SafetensorsIndex>& index) {
  const std::string directory = listing.path.string();
  if (!index) {
    GANTRY_CHECK(!listing.safetensors.empty() || listing.pickles.empty(), ErrorCode::kUnsupported,
                 "{}: expected *.safetensors files, found only {}: pickle files run code when "
                 "they are read and are never read here; convert them to safetensors",
                 directory, quote_names(listing.pickles));
    GANTRY_CHECK(!listing.safetensors.empty(), ErrorCode::kFormat,
                 "{}: expected *.safetensors files, found none", directory);
    return listing.safetensors;
  }
  std::vector<std::string> shards = shards_of(*index);
  std::vector<std::string> ignored;
  std::set_difference(listing.safetensors.begin(), listing.safetensors.end(), shards.begin(),
                      shards.end(), std::back_inserter(ignored));
  if (!ignored.empty()) {
    log(LogLevel::kInfo, "{}: not in the index and ignored: {}", directory, quote_names(ignored));
  }
  std::vector<std::string> missing;
  std::error_code error;
  for (const std::string& shard : shards) {
    if (!std::filesystem::exists(listing.path / shard, error)) missing.push_back(shard);
  }
  GANTRY_CHECK(missing.empty(), ErrorCode::kIo,
               "{}: expected the {} files of the index, missing {}: {}", directory, shards.size(),
               missing.size(), quote_names(missing));
  return shards;
}

/// All tensors of the files by name.
Tensors merge(const std::vector<WeightFile>& files, const std::string& directory) {
  Tensors tensors;
  std::vector<std::string> twice;
  for (size_t file = 0; file < files.size(); ++file) {
    for (const TensorInfo& info : files[file].tensors()) {
      const auto [entry, is_new] =
          tensors.try_emplace(info.name, CheckpointTensor{info, static_cast<int>(file)});
      if (!is_new) {
        const auto& first = files[static_cast<size_t>(entry->second.file)];
        twice.push_back(fmt::format("{} in {} and {}", info.name, first.path().filename().string(),
                                    files[file].path().filename().string()));
      }
    }
  }
  GANTRY_CHECK(twice.empty(), ErrorCode::kFormat, "{}: {} tensors are in two files: {}", directory,
               twice.size(), quote_names(twice));
  return tensors;
}

/// Throws unless index and files hold the same tensors in the same places.
void check_against_index(const Tensors& tensors, const std::vector<WeightFile>& files,
                         const SafetensorsIndex& index, const std::string& directory) {
  std::vector<std::string> missing;
  std::vector<std::string> misplaced;
  std::vector<std::string> unlisted;
  for (const auto& [name, shard] : index.weight_map) {
    const auto tensor = tensors.find(name);
    if (tensor == tensors.end()) {
      missing.push_back(name);
      continue;
    }
    const auto& file = files[static_cast<size_t>(tensor->second.file)];
    const std::string found = file.path().filename().string();
    if (found != shard) misplaced.push_back(fmt::format("{} in {}, not {}", name, found, shard));
  }
  for (const auto& [name, tensor] : tensors) {
    if (!index.weight_map.contains(name)) unlisted.push_back(name);
  }

  std::string problems;
  const auto report = [&](const std::vector<std::string>& names, std::string_view what) {
    if (names.empty()) return;
    problems += fmt::format("; {} tensors {}: {}", names.size(), what, quote_names(names));
  };
  report(missing, "of the index are in no file");
  report(unlisted, "of the files are not in the index");
  report(misplaced, "are in another file than the index says");
  GANTRY_CHECK(problems.empty(), ErrorCode::kFormat, "{}: index and files disagree{}", directory,
               problems);
}

// Keeps the names alone.
void forget_contents(Tensors& tensors) {
  for (auto& [name, tensor] : tensors) {
    CheckpointTensor bare;
    bare.info.name = name;
    tensor = std::move(bare);
  }
}

}  // namespace

Checkpoint Checkpoint::open_gguf(std::filesystem::path directory, std::vector<GgufFile> files) {
  Checkpoint checkpoint;
  checkpoint.directory_ = std::move(directory);
  const GgufFile& first = files.front();
  checkpoint.config_source_ = first.path().string();
  std::vector<const TensorInfo*> tensors;
  for (const GgufFile& file : files) {
    for (const TensorInfo& info : file.header().tensors)
      tensors.push_back(&info);
  }
  checkpoint.config_text_ =
      gguf_config_text(first.header().metadata, tensors, checkpoint.config_source_);
  for (GgufFile& file : files)
    checkpoint.files_.emplace_back(std::move(file));
  checkpoint.tensors_ = merge(checkpoint.files_, checkpoint.directory_.string());
  return checkpoint;
}

Checkpoint Checkpoint::open(const std::filesystem::path& directory) {
  if (is_gguf_path(directory)) return open_gguf(directory_of(directory), open_gguf_file(directory));
  const CheckpointDirectory listing = list_checkpoint_directory(directory);
  if (is_gguf_directory(listing)) return open_gguf(directory, open_gguf_files(listing));
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  checkpoint.config_source_ = (directory / "config.json").string();
  checkpoint.config_text_ = read_config(directory);
  checkpoint.quant_sidecars_ = read_quant_sidecars(directory);
  const auto index = read_index(listing);
  for (const std::string& shard : choose_shards(listing, index)) {
    checkpoint.files_.emplace_back(SafetensorsFile(resolve_inside(directory, shard)));
  }
  checkpoint.tensors_ = merge(checkpoint.files_, directory.string());
  if (!index) return checkpoint;

  check_against_index(checkpoint.tensors_, checkpoint.files_, *index, directory.string());
  const auto total_bytes = static_cast<double>(checkpoint.total_bytes());
  // A warning only: writers count tied tensors twice, or not at all.
  if (index->total_size && std::abs(*index->total_size - total_bytes) >= 1.0) {
    log(LogLevel::kWarn, "{}: the index says {} bytes, the tensors have {}", directory.string(),
        *index->total_size, total_bytes);
  }
  return checkpoint;
}

Checkpoint Checkpoint::open_names_only(const std::filesystem::path& directory) {
  if (is_gguf_path(directory) || is_gguf_directory(list_checkpoint_directory(directory))) {
    Checkpoint checkpoint = open(directory);
    checkpoint.names_only_ = true;
    checkpoint.files_.clear();
    forget_contents(checkpoint.tensors_);
    return checkpoint;
  }
  const CheckpointDirectory listing = list_checkpoint_directory(directory);
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  checkpoint.config_source_ = (directory / "config.json").string();
  checkpoint.config_text_ = read_config(directory);
  checkpoint.quant_sidecars_ = read_quant_sidecars(directory);
  checkpoint.names_only_ = true;
  std::vector<std::string> names;
  if (const auto index = read_index(listing)) {
    for (const auto& [name, shard] : index->weight_map)
      names.push_back(name);
  } else {
    std::vector<WeightFile> files;
    for (const std::string& shard : choose_shards(listing, std::nullopt)) {
      files.emplace_back(SafetensorsFile(resolve_inside(directory, shard)));
    }
    for (const auto& [name, tensor] : merge(files, directory.string()))
      names.push_back(name);
  }
  for (std::string& name : names)
    checkpoint.tensors_.try_emplace(std::move(name));
  forget_contents(checkpoint.tensors_);
  return checkpoint;
}

const CheckpointTensor* Checkpoint::find(std::string_view name) const noexcept {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::string Checkpoint::file_name(const CheckpointTensor& tensor) const {
  if (tensor.file < 0) return "";
  return files_[static_cast<size_t>(tensor.file)].path().filename().string();
}

int64_t Checkpoint::total_bytes() const noexcept {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_)
    bytes += tensor.info.num_bytes();
  return bytes;
}

std::string read_text_file(const std::filesystem::path& path, int64_t max_bytes) {
  const OpenedFile file = open_regular_file(path);
  GANTRY_CHECK(file.size_bytes <= max_bytes, ErrorCode::kFormat,
               "{}: expected at most {} bytes, found {}", path.string(), max_bytes,
               file.size_bytes);
  std::string text(static_cast<size_t>(file.size_bytes), '\0');
  read_exactly(file.fd.get(), path, 0, text.data(), file.size_bytes);
  return text;
}

}  // namespace gantry
