#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "loader/moe_config.h"
#include "loader/safetensors.h"

namespace gantry GANTRY_API {

/// What one MoE block got and gave.
struct ReferenceBlock {
  std::string name;           ///< the block's path, as the file spells it
  std::vector<float> input;   // [T, H]
  std::vector<float> output;  // [T, H]
  /// [T, H] with quantized activations, or empty
  std::vector<float> output_act_quant;
  std::vector<float> router_input;  // [T, H] where the router sees something else, or empty
  bool has_shared = true;           ///< false: the output leaves the shared experts out
};

/// Reference outputs: "<block>.input" and "<block>.output" of MoE blocks in a safetensors file, and
/// "<block>.output_act_quant" where the checkpoint quantizes activations.
struct Reference {
  std::map<int, ReferenceBlock> blocks;  ///< by decoder layer
  std::vector<int32_t> token_ids;        ///< [T] from "input_ids", or empty

  /// Some block has an output_act_quant.
  [[nodiscard]] bool has_act_quant() const noexcept;
};

/// The layer of a block's path: the number behind its first "layers" (or whatever the family's
/// container is) segment.
std::optional<int> layer_of_block(const std::string& block, std::string_view container);

/// The file's "input_ids" [T] i64, or empty.
std::vector<int32_t> read_token_ids(const SafetensorsFile& file);

/// Reads the blocks of MoE layers. Block paths may be those of the checkpoint or of the module
/// tree: only the layer number in them counts.
/// @throws Error kFormat if shapes do not fit the config; kInvalidArgument if no block matches
Reference read_reference(const std::filesystem::path& file, const MoeModelConfig& config);

/// ||y - ref||_F / ||ref||_F; NaN or infinity in y give infinity.
double relative_error(const std::vector<float>& y, const std::vector<float>& reference);

}  // namespace gantry
