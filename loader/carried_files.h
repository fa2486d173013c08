#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint_writer.h"

namespace gantry GANTRY_API {

/// The files of a checkpoint directory that are no weights: config, tokenizer, code, licence ...,
/// also in folders; by relative name, sorted. Left out: weights in any format, their indexes and
/// hidden files.
/// @param left_out names of weights that are not of this checkpoint (pickles, other folders'
///        files), for a note; may be null
/// @throws Error kFormat for a symbolic link that leaves the directory (see resolve_inside); kIo
std::vector<std::string> carried_files(const std::filesystem::path& directory,
                                       std::vector<std::string>* left_out);

/// Copies them into the output, except those in `except`, which the caller writes anew.
void carry_files(const std::filesystem::path& directory, CheckpointWriter& writer,
                 const std::set<std::string>& except = {});

}  // namespace gantry
