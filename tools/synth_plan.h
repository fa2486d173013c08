#pragma once

// What `gantry synth` writes: every tensor of a checkpoint with its content, and how to write it.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/base/parallel_for.h"
#include "loader/safetensors.h"
#include "tools/synth_content.h"
#include "tools/synth_shapes.h"

namespace gantry::cli {

struct SynthTensor {
  TensorInfo info;  ///< name, dtype, shape
  std::shared_ptr<const Content> content;
};

struct SynthPlan {
  std::string config_text;  ///< config.json
  /// Further files of the exporter: name and text.
  std::vector<std::pair<std::string, std::string>> side_files;
  std::vector<std::vector<SynthTensor>> layers;  ///< of the MoE layers, a file each
  int64_t total_bytes = 0;                       ///< of all tensors
};

/// @param config_json the shape's, with the wanted number of layers and experts (`resize`)
/// @param format      see export_formats.h
/// @throws Error kInvalidArgument if there is no such format, or the shape does not fit it
SynthPlan plan_synth(const SynthShape& shape, const nlohmann::ordered_json& config_json,
                     std::string_view format);

/// Writes the plan's files into an existing directory, config.json last: a directory with a config
/// is a whole checkpoint. The bytes depend on the plan and the seed alone.
/// @param progress called with the bytes of each piece, by several threads at once
/// @throws Error kIo
void write_synth(const SynthPlan& plan, const std::filesystem::path& directory, uint64_t seed,
                 const Threads& threads, const std::function<void(int64_t)>& progress);

}  // namespace gantry::cli
