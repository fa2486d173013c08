#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "loader/gguf_writer.h"
#include "loader/moe_config.h"
#include "loader/safetensors.h"

namespace gantry GANTRY_API {

/// llama.cpp's name of an architecture for a config.json's model_type: "qwen3moe" for "qwen3_moe".
/// @throws Error kUnsupported naming those that are known
std::string_view gguf_architecture(std::string_view model_type);

/// The key that keeps what stands before "layers." in the safetensors names ("model."), for the way
/// back.
inline constexpr std::string_view kGgufPrefixKey = "gantry.tensor_prefix";

/// The metadata of a model's MoE layers: what Gantry's reader, and llama.cpp's expert parameters,
/// need. The result is read back and compared with `config`.
///
/// @param config_text of the config.json, for the width of dense layers
/// @param prefix  see kGgufPrefixKey
/// @param tensors that the file will have
/// @throws Error kUnsupported naming the first difference, where the architecture's metadata cannot
///         say what the model computes
std::vector<GgufKey> gguf_metadata(const MoeModelConfig& config, const std::string& config_text,
                                   const std::string& prefix,
                                   const std::vector<TensorInfo>& tensors);

/// What two configs say differently about MoE layers, for people: "layer 3: top_k 2 and 4". Nothing
/// if they compute the same.
std::optional<std::string> config_difference(const MoeModelConfig& a, const MoeModelConfig& b);

/// The name of a tensor that is in no MoE block, between Hugging Face and llama.cpp. Only of
/// architectures whose attention llama.cpp keeps as it is; other names stay.
std::string to_gguf_name(std::string_view architecture, const std::string& name);
std::string from_gguf_name(std::string_view architecture, const std::string& name);

}  // namespace gantry
