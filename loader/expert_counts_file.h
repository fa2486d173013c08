#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Tokens that took each logical expert, by layer.
using ExpertCounts = std::map<int, std::vector<int64_t>>;

/// Reads how many tokens each expert of each layer got. Read are
///  - lines of JSON as `gantry run --json` and `gantry stats --json` write them: objects with
///    "layer" and "tokens_per_expert"; counts of a layer that comes again are added; other lines
///    are passed over
///  - `{"logical_count": [[...], ...]}` (SGLang), also with one more leading axis, which is summed
///  - `[[...], ...]`, layer by layer
/// In the last two, row i is layer i; rows of zeros (dense layers) are left out.
/// @throws Error kFormat naming file, line, layer and expert; kIo
ExpertCounts read_expert_counts(const std::filesystem::path& path);
/// @param source name used in messages
ExpertCounts parse_expert_counts(std::string_view text, const std::string& source);

}  // namespace gantry
