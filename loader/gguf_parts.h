#pragma once

#include <filesystem>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint_directory.h"
#include "loader/gguf.h"

namespace gantry GANTRY_API {

/// True for the path of a *.gguf file.
bool is_gguf_path(const std::filesystem::path& path);

/// The directory of a file: "." for a bare name.
std::filesystem::path directory_of(const std::filesystem::path& file);

/// True for a directory that has GGUF files, and no safetensors files or index.
bool is_gguf_directory(const CheckpointDirectory& listing);

/// Opens the GGUF file of a directory, or all parts of one that was split, the first one first.
/// @throws Error kFormat naming them if the files are not the parts of one model
/// @throws Error as GgufFile does
std::vector<GgufFile> open_gguf_files(const CheckpointDirectory& listing);

/// The same for a path, which may be that of any part ("NAME-00002-of-00003.gguf").
std::vector<GgufFile> open_gguf_file(const std::filesystem::path& path);

}  // namespace gantry
