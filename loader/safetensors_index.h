#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// The index of a checkpoint in several files: `*.safetensors.index.json`.
struct SafetensorsIndex {
  std::map<std::string, std::string, std::less<>> weight_map;  ///< tensor name -> shard name
  std::optional<double> total_size;  ///< bytes; a claim, some writers leave it out or get it wrong
};

/// Parses the text of an index. Every shard name is a plain file name: whatever could leave the
/// checkpoint's directory is refused.
/// @param source name used in messages
/// @throws Error kFormat naming the source, the tensor and the shard
SafetensorsIndex parse_safetensors_index(std::string_view text, const std::string& source);

}  // namespace gantry
