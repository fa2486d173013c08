#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// What a run says about one layer.
struct LayerLoad {
  std::vector<int64_t> tokens_per_expert{};  ///< [E] tokens that took each logical expert
  std::vector<int64_t> tokens_per_rank{};    ///< [ep] (token, expert) pairs computed, or empty
  int64_t rebalances = 0;
  int64_t bytes_moved = 0;  ///< between ranks, by rebalances

  friend bool operator==(const LayerLoad&, const LayerLoad&) = default;
};

/// By layer.
using ExpertCounts = std::map<int, LayerLoad>;

/// Reads how many tokens each expert of each layer got. Read are
///  - lines of JSON as `gantry run --json` and `gantry stats --json` write them: objects with
///    "layer" and "tokens_per_expert", perhaps "tokens_per_rank", "rebalances" and "bytes_moved";
///    numbers of a layer that comes again are added; other lines are passed over
///  - `{"logical_count": [[...], ...]}` (SGLang), also with one more leading axis, which is summed
///  - `[[...], ...]`, layer by layer
/// In the last two, row i is layer i; rows of zeros (dense layers) are left out.
/// @throws Error kFormat naming file, line, layer and expert; kIo
ExpertCounts read_expert_counts(const std::filesystem::path& path);
/// @param source name used in messages
ExpertCounts parse_expert_counts(std::string_view text, const std::string& source);

}  // namespace gantry
