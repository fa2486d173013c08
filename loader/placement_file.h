#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/expert_placement.h"

namespace gantry GANTRY_API {

struct MoeModelConfig;

/// Whose shape a placement file has:
///
/// | format | shape | rows |
/// |---|---|---|
/// | kSglang | `{"physical_to_logical_map": [[...], ...]}` | every layer of the model, dense ones
/// too | | kVllm | `[[...], ...]`, or `[...]` for all layers; `{"expert_to_ep_rank": [...]}` is
/// read | MoE layers | | kTensorRtLlm | `{"num_slots": P, "initial_global_assignments": {"3":
/// [...], ...}}` | by layer number |
///
/// A row is the logical expert of each physical one, rank by rank.
/// @source SGLang --init-expert-location; vLLM pull requests 49572 and 34811; TensorRT-LLM
///         MoeLoadBalancerConfig
enum class PlacementFormat : unsigned char { kSglang, kVllm, kTensorRtLlm };

std::string_view to_string(PlacementFormat format) noexcept;
/// @throws Error kInvalidArgument for anything but "sglang", "vllm" and "tensorrt_llm"
PlacementFormat parse_placement_format(std::string_view name);

/// What placement files and load files count: layers and experts.
struct PlacedModel {
  struct Layer {
    int layer = 0;
    int num_experts = 0;
  };
  int num_layers = 0;         ///< of the whole model
  std::vector<Layer> layers;  ///< the MoE layers, ascending
};

PlacedModel placed_model(const MoeModelConfig& config);

/// Reads a placement file of any format above; which one it is follows from its keys.
/// @throws Error kFormat naming the file and the layer for anything that is not such a file or does
///         not fit the model (number of layers, ids, experts without a copy); kIo
ExpertPlacement read_placement_file(const std::filesystem::path& path, const PlacedModel& model);
/// @param source name used in messages
ExpertPlacement parse_placement_file(std::string_view text, const std::string& source,
                                     const PlacedModel& model);

/// Writes physical-to-logical rows of every MoE layer. Rows of dense layers, which SGLang counts
/// too, hold the experts in order.
/// @param rows  by layer; the same length each; every MoE layer of `model`
/// @param yaml  TensorRT-LLM reads YAML with whole numbers as keys, which JSON has not
/// @throws Error kInvalidArgument if a layer is missing or the lengths differ
std::string placement_file_text(PlacementFormat format,
                                const std::map<int, std::vector<int32_t>>& rows,
                                const PlacedModel& model, bool yaml = false);

}  // namespace gantry
