#pragma once

// Real models' shapes for `gantry synth`.

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace gantry::cli {

/// A model whose MoE layers can be made up: its config.json and where its tensors stand.
struct SynthShape {
  std::string_view name;
  std::string_view prefix;        ///< before "layers.": "model."
  bool stacked = false;           ///< experts in 3-D tensors, as this model's files have them
  nlohmann::ordered_json config;  ///< as published, with the number of layers of one MoE layer
};

/// All shapes. Sizes are those of the published config.json files.
std::vector<SynthShape> synth_shapes();

/// Sets the number of decoder layers so that `num_layers` of them are MoE, and the number of
/// experts if it is not 0.
void resize(nlohmann::ordered_json& config, int num_layers, int num_experts);

}  // namespace gantry::cli
