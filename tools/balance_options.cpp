#include "tools/balance_options.h"

#include <CLI/CLI.hpp>

#include "kernels/base/check.h"
#include "loader/file_io.h"

namespace gantry::cli {

void add_eplb_options(CLI::App& app, EplbOptions& options) {
  app.add_option("--redundant", options.redundant, "copies of experts besides one of each")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--groups", options.groups, "routing groups (n_group of the config)")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
  app.add_option("--nodes", options.nodes, "hosts that the ranks are spread over, evenly")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str();
}

PlacedModel model_of_counts(const ExpertCounts& counts, int num_layers) {
  PlacedModel model;
  for (const auto& [layer, load] : counts)
    model.layers.push_back({layer, static_cast<int>(load.tokens_per_expert.size())});
  const int last = model.layers.back().layer;
  GANTRY_CHECK(num_layers == 0 || num_layers > last, ErrorCode::kInvalidArgument,
               "--num-layers {}: the load file counts layer {}", num_layers, last);
  model.num_layers = num_layers == 0 ? last + 1 : num_layers;
  return model;
}

ExpertPlacement placement_of(const std::string& name, const PlacedModel& model) {
  for (const Placement strategy : {Placement::kLinear, Placement::kRoundRobin}) {
    if (name == to_string(strategy)) return strategy;
  }
  GANTRY_CHECK(std::filesystem::exists(name), ErrorCode::kInvalidArgument,
               "--placement: expected linear, round_robin or a file, found '{}'", name);
  return read_placement_file(name, model);
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path, static_cast<int64_t>(text.size()));
  file.write(0, std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace gantry::cli
