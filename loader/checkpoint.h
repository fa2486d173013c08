#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "loader/encodings/quant_config.h"
#include "loader/weight_file.h"

namespace gantry GANTRY_API {

/// Where a tensor of a checkpoint is.
struct CheckpointTensor {
  TensorInfo info;  ///< in names-only checkpoints: the name alone
  int file = -1;    ///< index into Checkpoint::files(); -1 in names-only checkpoints
};

/// A directory with config.json and safetensors files, or with a GGUF file (or the parts of one).
///
/// A GGUF file is read where there are no safetensors files; its metadata takes the place of
/// config.json (see gguf_config.h). It may also be named itself, instead of its directory.
///
/// Opening reads headers, config and index and checks them against each other: every file of the
/// index exists (a plain name inside the directory; symbolic links only into the Hugging Face
/// cache's ../../blobs/), every tensor is where the index says, none is in two files, and no file
/// is shorter than its header says. Weights are not read. Immutable after open: any thread may
/// read.
class Checkpoint {
 public:
  /// @throws Error kIo if the directory or a file in it cannot be read
  /// @throws Error kFormat naming the file and the problem
  /// @throws Error kUnsupported if the only weights are pickle files, which are never read
  static Checkpoint open(const std::filesystem::path& directory);

  /// Reads config.json and the index alone: names without shapes, no weight file needed. Where
  /// there is no index but there are safetensors files, their headers give the names.
  static Checkpoint open_names_only(const std::filesystem::path& directory);

  [[nodiscard]] const std::filesystem::path& directory() const noexcept { return directory_; }
  /// Text of config.json, or what a GGUF file's metadata says in its place.
  [[nodiscard]] const std::string& config_text() const noexcept { return config_text_; }
  /// The files beside config.json that may say how it is quantized; not parsed.
  [[nodiscard]] const std::vector<QuantSidecar>& quant_sidecars() const noexcept {
    return quant_sidecars_;
  }
  /// The file that the text came from, for messages.
  [[nodiscard]] const std::string& config_source() const noexcept { return config_source_; }
  /// All tensors by name.
  [[nodiscard]] const std::map<std::string, CheckpointTensor, std::less<>>& tensors()
      const noexcept {
    return tensors_;
  }
  [[nodiscard]] const CheckpointTensor* find(std::string_view name) const noexcept;
  [[nodiscard]] const std::vector<WeightFile>& files() const noexcept { return files_; }
  /// Name of the file that holds a tensor, for messages; empty in names-only checkpoints.
  [[nodiscard]] std::string file_name(const CheckpointTensor& tensor) const;
  [[nodiscard]] bool names_only() const noexcept { return names_only_; }
  /// Bytes of all tensors.
  [[nodiscard]] int64_t total_bytes() const noexcept;

 private:
  static Checkpoint open_gguf(std::filesystem::path directory, std::vector<GgufFile> files);

  std::filesystem::path directory_;
  std::string config_text_;
  std::vector<QuantSidecar> quant_sidecars_;
  std::string config_source_;
  std::map<std::string, CheckpointTensor, std::less<>> tensors_;
  std::vector<WeightFile> files_;
  bool names_only_ = false;
};

/// Reads a whole small text file.
/// @throws Error kIo, or kFormat if it is larger than `max_bytes`
std::string read_text_file(const std::filesystem::path& path, int64_t max_bytes);

}  // namespace gantry
