#pragma once

// `quantization_config` as exporters write it, with their keys and their words. The values are
// those of llm-compressor 0.14, GPTQModel 7.7, ModelOpt 0.47, DeepSeek and gpt-oss.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace gantry::cli {

using Json = nlohmann::ordered_json;
using ModuleNames = std::vector<std::string>;

Json fp8_block_config(const ModuleNames& plain_modules, int64_t group);
Json fp8_dynamic_config(const ModuleNames& plain_modules, int64_t group);
Json w8a8_config(const ModuleNames& plain_modules, int64_t group);
Json w4a16_config(const ModuleNames& plain_modules, int64_t group);
Json mxfp4_config(const ModuleNames& plain_modules, int64_t group);
Json awq_config(const ModuleNames& plain_modules, int64_t group);
Json gptq_config(const ModuleNames& plain_modules, int64_t group);
Json gpt_oss_mxfp4_config(const ModuleNames& plain_modules, int64_t group);
Json nvfp4_config(const ModuleNames& plain_modules, int64_t group);

/// Files that the exporter writes beside config.json: name and content.
std::vector<std::pair<std::string, Json>> quant_side_files(const Json& quantization_config);

}  // namespace gantry::cli
