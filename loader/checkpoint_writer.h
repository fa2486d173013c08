#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "loader/file_io.h"
#include "loader/safetensors.h"
#include "loader/tensor_sink.h"

namespace gantry GANTRY_API {

/// One safetensors file to come.
struct ShardPlan {
  std::string file;                 ///< "model-00001-of-00003.safetensors"
  std::vector<TensorInfo> tensors;  ///< name, dtype and shape; begin and end are computed
};

/// Cuts tensors, in the order given, into files of at most `shard_bytes` of data (a larger tensor
/// has a file of its own). One file is "model.safetensors", as the reference writer names it.
/// @param shard_bytes 0: everything into one file
/// @throws Error kInvalidArgument for negative sizes and products beyond 64 bits
std::vector<ShardPlan> plan_shards(std::vector<TensorInfo> tensors, int64_t shard_bytes);

/// Writes a checkpoint directory tensor by tensor, in any order and from any number of threads,
/// and makes it visible when it is whole (see OutputDirectory): a kill at any point leaves nothing
/// under the name.
///
/// A file is synced as soon as its last byte has come, and recorded with its checksum; with
/// `resume` files that an unfinished run recorded, and whose bytes still give that checksum, are
/// kept. A writer holds no tensor bytes.
class CheckpointWriter : public TensorSink {
 public:
  struct Options {
    bool resume = false;
    /// What the bytes depend on: the command and its options, sizes and times of the source files.
    /// An unfinished run with another fingerprint is not continued.
    std::string fingerprint;
    /// "__metadata__" of every file.
    std::map<std::string, std::string> metadata = {{"format", "pt"}};
    /// Writes model.safetensors.index.json (always with more than one file, never with one).
    bool index = true;
  };

  /// @param directory must not exist, or be empty
  /// @param inputs    directories that are read; the output may not overlap them
  /// @throws Error kInvalidArgument for these, for a tensor in two files, and for what
  ///         SafetensorsWriter refuses
  /// @throws Error kIo, also if the file system has less room than the tensors need
  CheckpointWriter(const std::filesystem::path& directory,
                   std::span<const std::filesystem::path> inputs, std::vector<ShardPlan> shards,
                   Options options);
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;
  /// Without `finish`: files that are whole stay in the hidden directory, for `resume`.
  ~CheckpointWriter() override;

  /// Bytes of all tensors, and of those in files that were kept.
  [[nodiscard]] int64_t total_bytes() const noexcept;
  [[nodiscard]] int64_t kept_bytes() const noexcept;

  /// Whether a tensor is in a file that was kept: it must not be written again.
  /// @throws Error kInvalidArgument if there is no such tensor
  [[nodiscard]] bool is_kept(std::string_view tensor) const override;

  /// Writes bytes [offset, offset + data.size()) of a tensor. Thread-safe; every byte once. The
  /// call that completes a file syncs it.
  /// @throws Error kInvalidArgument as SafetensorsWriter::write; kIo
  void write(std::string_view tensor, int64_t offset, std::span<const std::byte> data) override;

  /// A further file: config.json, quantization_config.json ... Not durable before `finish`.
  /// @param name relative, without ".."
  void write_text(std::string_view name, std::string_view text);
  /// A further file for the caller to write and commit, before `finish`: weights of another format.
  /// @throws Error kIo, also if the file system has less room
  std::unique_ptr<AtomicFile> create_file(std::string_view name, int64_t size_bytes);
  /// Copies a file, with its permission to execute.
  void copy_file(const std::filesystem::path& source, std::string_view name);

  /// Writes the index, syncs everything and renames the directory into place.
  /// @throws Error kInternal if a tensor byte has not come; kIo
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// A text that changes when one of these files does: names, sizes and times of change.
/// @throws Error kIo
std::string fingerprint_files(std::span<const std::filesystem::path> files);

}  // namespace gantry
