#pragma once

// `quantization_config` as exporters write it, with their keys and their words. The values are
// those of llm-compressor 0.14, GPTQModel 7.7, ModelOpt 0.47, DeepSeek and gpt-oss.

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace gantry::cli {

struct ExportFormat;

using Json = nlohmann::ordered_json;
using ModuleNames = std::vector<std::string>;

Json compressed_tensors_config(const ExportFormat& format, const ModuleNames& plain_modules);
Json gptqmodel_config(const ExportFormat& format, const ModuleNames& plain_modules);
Json modelopt_config(const ExportFormat& format, const ModuleNames& plain_modules);
Json fp8_block_config(const ExportFormat& format, const ModuleNames& plain_modules);
Json gpt_oss_mxfp4_config(const ExportFormat& format, const ModuleNames& plain_modules);

/// The text of a config.json with this quantization_config in place of any that it has.
/// @param text of an object, checked before
std::string with_quantization(const std::string& text, const Json& quantization_config);

/// Files that the exporter writes beside config.json: name and content.
std::vector<std::pair<std::string, Json>> quant_side_files(const Json& quantization_config);

}  // namespace gantry::cli
