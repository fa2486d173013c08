#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Reference inputs and outputs that may lie beside a checkpoint; not part of it.
inline constexpr std::string_view kReferenceSidecar = "moe_io.safetensors";

/// What a checkpoint's directory holds, by file name; nothing is opened.
struct CheckpointDirectory {
  std::filesystem::path path;
  std::vector<std::string> safetensors;  ///< sorted, without sidecar and hidden files
  std::optional<std::string> index;      ///< the *.safetensors.index.json to use
  std::vector<std::string> gguf;         ///< sorted *.gguf files, without hidden ones
  std::vector<std::string> pickles;      ///< sorted; only ever named in messages
};

/// Lists a directory.
///
/// `model.safetensors.index.json`, the name that Hugging Face reads, comes before indexes of other
/// names; of those there may be one.
///
/// @throws Error kIo if it does not exist, is not a directory or cannot be listed
/// @throws Error kFormat naming them if there is more than one index to choose from
CheckpointDirectory list_checkpoint_directory(const std::filesystem::path& directory);

/// The path of a file of the directory, which may be a symbolic link only to somewhere inside the
/// directory or into ../../blobs/, as in the Hugging Face cache
/// (`models--x/snapshots/<revision>/a -> ../../blobs/<sha>`).
///
/// Guards against checkpoints that name other files of the machine; not against someone who
/// exchanges links while they are read.
///
/// @throws Error kFormat naming the link and its target
/// @throws Error kIo if the file does not exist
std::filesystem::path resolve_inside(const std::filesystem::path& directory, std::string_view name);

}  // namespace gantry
