#pragma once

// What `gantry place` and `gantry stats` share.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "loader/expert_counts_file.h"
#include "loader/placement_file.h"

namespace CLI {
class App;
}

namespace gantry::cli {

/// --redundant, --groups, --nodes.
struct EplbOptions {
  int redundant = 0;
  int groups = 1;
  int nodes = 1;
};

void add_eplb_options(CLI::App& app, EplbOptions& options);

/// The layers that a load file counts, as a model of them: `num_layers` 0 for the last one + 1.
/// @throws Error kInvalidArgument if a layer is beyond num_layers
PlacedModel model_of_counts(const ExpertCounts& counts, int num_layers);

/// linear, round_robin, or a placement file of that model.
/// @throws Error kInvalidArgument, or as read_placement_file does
ExpertPlacement placement_of(const std::string& name, const PlacedModel& model);

/// Writes a whole text file, or nothing.
void write_text_file(const std::filesystem::path& path, std::string_view text);

}  // namespace gantry::cli
