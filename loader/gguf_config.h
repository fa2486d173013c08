#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/export.h"
#include "loader/gguf_header.h"

namespace gantry GANTRY_API {

/// What a GGUF file's metadata say about the model, as a config.json of model_type
/// "gguf.<architecture>" whose keys are those of the metadata ("{arch}.expert_count" is
/// "expert_count"), for read_moe_config.
///
/// @param tensors of all parts: some facts are declared by their presence alone
/// @throws Error kFormat if a key is missing or has another type than expected
/// @throws Error kUnsupported naming the architecture if it is not one of gguf_model_types()
/// @source llama.cpp's metadata keys and how its graphs use them
std::string gguf_config_text(const std::map<std::string, GgufValue, std::less<>>& metadata,
                             std::span<const TensorInfo* const> tensors, const std::string& file);

/// Values of general.architecture that can be read, as model_types: "gguf.qwen3moe" ...
std::span<const std::string_view> gguf_model_types() noexcept;

}  // namespace gantry
