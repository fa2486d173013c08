#include "loader/encodings/quant_scheme.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <tuple>

#include "kernels/base/check.h"
#include "loader/config_reader.h"
#include "loader/encodings/quant_scheme_reader.h"
#include "loader/strict_json.h"

// One reader a quant_method. What they share is little: each exporter has its own words.

namespace gantry {
namespace {

constexpr int64_t kMaxGroup = int64_t{1} << 20;

void append(std::string& method, const std::string& detail) {
  method += ' ';
  method += detail;
}

std::string upper(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return text;
}

int read_bits(const ConfigReader& config, ConfigReader::Keys keys) {
  return static_cast<int>(config.require_int(keys, 1, 8));
}

// -1 (and compressed-tensors' null) mean one group a row.
void read_group(const ConfigReader& config, ConfigReader::Keys keys, QuantScheme& scheme) {
  const int64_t group = config.int_in_range_or(keys, -1, -1, kMaxGroup);
  scheme.group_size = group > 0 ? group : 0;
  scheme.grid = ScaleGrid::kGroup;
}

void set_blocks(QuantScheme& scheme, const std::vector<std::string>& sizes,
                const ConfigReader& config) {
  GANTRY_CHECK(sizes.size() == 2, ErrorCode::kFormat,
               "{}: block size: expected two numbers, found {}", config.source(), sizes.size());
  const auto number = [&](const std::string& text) {
    const int64_t value = text.size() <= 7 ? std::strtoll(text.c_str(), nullptr, 10) : 0;
    GANTRY_CHECK(value >= 1, ErrorCode::kFormat,
                 "{}: block size: expected a positive number, "
                 "found '{}'",
                 config.source(), text);
    return value;
  };
  scheme.grid = ScaleGrid::kBlock;
  scheme.block_rows = number(sizes[0]);
  scheme.block_cols = number(sizes[1]);
}

void read_gptq(const ConfigReader& config, QuantScheme& scheme) {
  scheme.bits = read_bits(config, {"bits"});
  read_group(config, {"group_size"}, scheme);
  scheme.symmetric = config.bool_or({"sym"}, true);
  scheme.act_order = config.bool_or({"desc_act"}, false);
  const std::string format = config.string_or({"checkpoint_format", "format"}, "gptq");
  GANTRY_CHECK(format == "gptq" || format == "gptq_v2" || format == "gemm", ErrorCode::kUnsupported,
               "{}: GPTQ checkpoint_format '{}': expected gptq or gptq_v2", config.source(),
               format);
  scheme.zero_minus_one = format != "gptq_v2";
}

void read_awq(const ConfigReader& config, QuantScheme& scheme) {
  scheme.int_packing = IntPacking::kAwq;
  scheme.bits = read_bits(config, {"bits", "w_bit"});
  read_group(config, {"group_size", "q_group_size"}, scheme);
  scheme.symmetric = !config.bool_or({"zero_point"}, true);
  // Other versions arrange the words differently, which a square matrix would not show.
  const std::string version = upper(config.string_or({"version"}, "gemm"));
  GANTRY_CHECK(version == "GEMM", ErrorCode::kUnsupported, "{}: AWQ version '{}': expected gemm",
               config.source(), version);
}

void read_fp8(const ConfigReader& config, QuantScheme& scheme) {
  if (const auto blocks = config.find_list("weight_block_size")) {
    set_blocks(scheme, *blocks, config);
  }
  scheme.activations = fp8_activations(config);
}

void read_auto_round(const ConfigReader& config, QuantScheme& scheme) {
  const std::string packing = config.string_or({"packing_format"}, "auto_round:auto_gptq");
  append(scheme.method, packing);
  scheme.activations = auto_round_activations(config);
  if (packing == "auto_round:auto_awq") return read_awq(config, scheme);
  if (packing == "auto_round:auto_gptq") return read_gptq(config, scheme);
  if (packing == "auto_round:fp8_static") {
    scheme.grid = ScaleGrid::kChannel;
    return;
  }
  if (packing == "auto_round:fp8") {
    const auto blocks = config.find_list("weight_block_size");
    GANTRY_CHECK(blocks.has_value(), ErrorCode::kFormat,
                 "{}: auto_round:fp8 without weight_block_size", config.source());
    return set_blocks(scheme, *blocks, config);
  }
  GANTRY_CHECK(packing == "auto_round:llm_compressor", ErrorCode::kUnsupported,
               "{}: packing_format '{}' is not known", config.source(), packing);
  read_group(config, {"group_size"}, scheme);
}

void read_compressed_tensors(const ConfigReader& config, const nlohmann::json& object,
                             QuantScheme& scheme) {
  const auto groups = object.find("config_groups");
  GANTRY_CHECK(groups != object.end() && groups->is_object() && !groups->empty(),
               ErrorCode::kFormat, "{}: compressed-tensors without config_groups", config.source());
  GANTRY_CHECK(groups->size() == 1, ErrorCode::kUnsupported,
               "{}: {} config groups: which one applies depends on the module", config.source(),
               groups->size());
  GANTRY_CHECK(groups->begin()->is_object(), ErrorCode::kFormat,
               "{}: config_groups: expected objects", config.source());
  const ConfigReader group(*groups->begin(), config.source());
  const ConfigReader weights = group.object_or_empty("weights");
  const std::string format = group.string_or({"format"}, config.string_or({"format"}, ""));
  append(scheme.method, format);
  scheme.activations = compressed_tensors_activations(group, format);
  scheme.bits = read_bits(weights, {"num_bits"});
  scheme.symmetric = weights.bool_or({"symmetric"}, true);
  scheme.act_order = weights.string_or({"actorder"}, "") == "group";
  const std::string strategy = weights.string_or({"strategy"}, "tensor");
  if (strategy == "channel") {
    scheme.grid = ScaleGrid::kChannel;
  } else if (strategy == "group" || strategy == "tensor_group") {
    read_group(weights, {"group_size"}, scheme);
  } else if (strategy == "block") {
    const auto blocks = weights.find_list("block_structure");
    GANTRY_CHECK(blocks.has_value(), ErrorCode::kFormat,
                 "{}: strategy block without block_structure", config.source());
    set_blocks(scheme, *blocks, config);
  } else {
    GANTRY_CHECK(strategy == "tensor", ErrorCode::kUnsupported,
                 "{}: weights.strategy '{}' is not known", config.source(), strategy);
  }
}

// False where there are config groups and none of them quantizes inputs.
bool modelopt_declares_inputs(const nlohmann::json& object) {
  const auto groups = object.find("config_groups");
  if (groups == object.end() || !groups->is_object() || groups->empty()) return true;
  return std::any_of(groups->begin(), groups->end(), [](const nlohmann::json& group) {
    return group.is_object() && group.contains("input_activations") &&
           !group["input_activations"].is_null();
  });
}

void read_modelopt(const ConfigReader& config, const nlohmann::json& object, QuantScheme& scheme) {
  std::string algorithm = config.string_or({"quant_algo"}, "");
  append(scheme.method, algorithm);
  algorithm = upper(std::move(algorithm));
  struct Row {
    std::string_view algorithm;
    ScaleGrid grid;
    int64_t size;
    int bits;
  };
  constexpr std::array<Row, 11> kRows = {{{"FP8", ScaleGrid::kTensor, 0, 0},
                                          {"FP8_PB_WO", ScaleGrid::kBlock, 128, 0},
                                          {"FP8_PER_CHANNEL_PER_TOKEN", ScaleGrid::kChannel, 0, 0},
                                          {"W8A8_SQ_PER_CHANNEL", ScaleGrid::kChannel, 0, 8},
                                          {"MXFP4", ScaleGrid::kGroup, 32, 0},
                                          {"MXFP8", ScaleGrid::kGroup, 32, 0},
                                          {"W4A8_MXFP4_FP8", ScaleGrid::kGroup, 32, 0},
                                          {"NVFP4", ScaleGrid::kGroup, 16, 0},
                                          {"NVFP4_AWQ", ScaleGrid::kGroup, 16, 0},
                                          {"W4A16_NVFP4", ScaleGrid::kGroup, 16, 0},
                                          {"W4A16_AWQ", ScaleGrid::kGroup, 128, 4}}};
  const auto* row = std::find_if(kRows.begin(), kRows.end(),
                                 [&](const Row& r) { return r.algorithm == algorithm; });
  GANTRY_CHECK(row != kRows.end(), ErrorCode::kUnsupported,
               "{}: ModelOpt quant_algo '{}' is not known", config.source(), algorithm);
  scheme.grid = row->grid;
  scheme.bits = row->bits;
  scheme.activations = modelopt_activations(algorithm, modelopt_declares_inputs(object));
  if (row->grid == ScaleGrid::kBlock) scheme.block_rows = scheme.block_cols = row->size;
  if (row->grid == ScaleGrid::kGroup) {
    scheme.group_size = config.int_in_range_or({"group_size"}, row->size, 1, kMaxGroup);
  }
}

void read_quark(const ConfigReader& config, QuantScheme& scheme) {
  const ConfigReader global = config.object_or_empty("global_quant_config");
  const ConfigReader weight = global.object_or_empty("weight");
  scheme.activations = quark_activations(global);
  const std::string qscheme = weight.string_or({"qscheme"}, "");
  append(scheme.method, weight.string_or({"dtype"}, ""));
  append(scheme.method, qscheme);
  scheme.symmetric = weight.bool_or({"symmetric"}, true);
  if (qscheme == "per_channel") {
    scheme.grid = ScaleGrid::kChannel;
  } else if (qscheme == "per_group") {
    read_group(weight, {"group_size"}, scheme);
  } else {
    GANTRY_CHECK(qscheme == "per_tensor", ErrorCode::kUnsupported,
                 "{}: Quark qscheme '{}' is not known", config.source(), qscheme);
  }
}

}  // namespace

QuantObject find_quant_object(const nlohmann::json& root, const std::string& source) {
  QuantObject found;
  if (!root.is_object()) return found;
  const auto look_in = [&](const nlohmann::json& parent, std::vector<std::string> path) {
    const auto object = parent.find("quantization_config");
    if (object == parent.end() || object->is_null() || found.object != nullptr) return;
    path.emplace_back("quantization_config");
    found = {&*object, std::move(path)};
  };
  look_in(root, {});
  if (const auto text = root.find("text_config"); text != root.end() && text->is_object()) {
    look_in(*text, {"text_config"});
  }
  GANTRY_CHECK(found.object == nullptr || found.object->is_object(), ErrorCode::kFormat,
               "{}: quantization_config: expected an object", source);
  return found;
}

QuantScheme read_scheme(const nlohmann::json& object, const std::string& source) {
  const ConfigReader config(object, source);
  QuantScheme scheme;
  scheme.method = config.string_or({"quant_method"}, "");
  const std::string method = scheme.method;
  if (method == "gptq") {
    read_gptq(config, scheme);
  } else if (method == "awq") {
    read_awq(config, scheme);
  } else if (method == "fp8") {
    read_fp8(config, scheme);
  } else if (method == "auto-round") {
    read_auto_round(config, scheme);
  } else if (method == "compressed-tensors") {
    read_compressed_tensors(config, object, scheme);
  } else if (method == "modelopt") {
    read_modelopt(config, object, scheme);
  } else if (method == "quark") {
    read_quark(config, scheme);
  } else if (method == "gguf") {
    // Each tensor says how it is written.
  } else if (method == "mxfp4" || method == "mxfp8") {
    scheme.grid = ScaleGrid::kGroup;
    scheme.group_size = 32;
    if (method == "mxfp8") scheme.activations = mxfp8_activations();
  } else {
    GANTRY_CHECK(method == "bitsandbytes", ErrorCode::kUnsupported,
                 "{}: quant_method '{}' is not known", source, method);
    scheme.grid = ScaleGrid::kChannel;
  }
  return scheme;
}

bool reads_weights_alike(const QuantScheme& a, const QuantScheme& b) noexcept {
  const auto fields = [](const QuantScheme& s) {
    return std::tie(s.int_packing, s.bits, s.symmetric, s.zero_minus_one, s.act_order, s.grid,
                    s.block_rows, s.block_cols, s.group_size);
  };
  return fields(a) == fields(b);
}

std::string describe(const QuantScheme& scheme) {
  std::string text = scheme.method;
  if (scheme.bits > 0) text += fmt::format(", {} bits", scheme.bits);
  switch (scheme.grid) {
    case ScaleGrid::kTensor:
      text += ", one scale";
      break;
    case ScaleGrid::kChannel:
      text += ", a scale a row";
      break;
    case ScaleGrid::kBlock:
      text += fmt::format(", blocks of {} x {}", scheme.block_rows, scheme.block_cols);
      break;
    case ScaleGrid::kGroup:
      text += scheme.group_size > 0 ? fmt::format(", groups of {}", scheme.group_size)
                                    : std::string(", one group a row");
      break;
  }
  if (!scheme.symmetric) text += ", asymmetric";
  if (scheme.act_order) text += ", activation order";
  if (scheme.int_packing == IntPacking::kGptq && scheme.method.starts_with("gptq") &&
      !scheme.zero_minus_one) {
    text += ", format v2";
  }
  return text;
}

std::optional<QuantScheme> read_quant_scheme(const std::string& config_text,
                                             const std::string& source) {
  const nlohmann::json root = parse_strict_json(config_text, source);
  const QuantObject found = find_quant_object(root, source);
  if (found.object == nullptr) return std::nullopt;
  return read_scheme(*found.object, source);
}

}  // namespace gantry
