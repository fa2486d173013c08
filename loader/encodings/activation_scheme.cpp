#include "loader/encodings/activation_scheme.h"

#include <algorithm>
#include <array>
#include <optional>

#include "kernels/base/check.h"
#include "loader/config_reader.h"

// Every exporter's words come down to a data type, a number of bits and what a scale covers; from
// there on there is one rule (`scheme_of`).
//
// GPTQ, AWQ, MXFP4 (gpt-oss) and bitsandbytes declare nothing here: their inputs stay as they are.
// LLM.int8() would quantize rows to int8 but keeps whole columns that hold an outlier anywhere in
// the batch, so that a token's result depends on its neighbours; its weights are dequantized
// instead.

namespace gantry {
namespace {

constexpr int64_t kMaxGroup = int64_t{1} << 20;

// What a scale covers, in the exporters' words.
enum class Cover : uint8_t { kTensor, kToken, kGroup };

struct Words {
  bool is_float = true;
  int64_t bits = 16;
  Cover cover = Cover::kTensor;
  bool dynamic = true;
  bool exponents = false;  // scales are powers of two: a microscaling format
  int64_t group_size = 0;
};

ActivationScheme refused(std::string reason) {
  ActivationScheme scheme;
  scheme.refusal = std::move(reason);
  return scheme;
}

ActivationScheme dynamic_of(RowQuantization kind, int64_t group_size = 0) {
  ActivationScheme scheme;
  scheme.format = {.kind = kind, .group_size = group_size};
  return scheme;
}

ActivationScheme static_of(RowQuantization kind, std::string_view suffix, int64_t group_size = 0) {
  ActivationScheme scheme = dynamic_of(kind, group_size);
  scheme.scale_suffix = suffix;
  return scheme;
}

// One scale for a batch would let a token's result depend on its neighbours.
ActivationScheme token_instead_of_batch(RowQuantization kind) {
  ActivationScheme scheme = dynamic_of(kind);
  scheme.note = "the dynamic scale over the whole batch is replaced by one a token";
  return scheme;
}

ActivationScheme nvfp4_of(const Words& words) {
  constexpr int64_t kGroup = 16;
  if (words.group_size != kGroup) {
    return refused(fmt::format("fp4 inputs in groups of {}", words.group_size));
  }
  if (!words.dynamic) {
    return static_of(RowQuantization::kNvFp4Static, "input_global_scale", kGroup);
  }
  ActivationScheme scheme = dynamic_of(RowQuantization::kNvFp4Token, kGroup);
  scheme.note = "the dynamic global scale over the whole batch is replaced by one a token";
  return scheme;
}

ActivationScheme microscaled(const Words& words) {
  constexpr int64_t kGroup = 32;
  if (words.group_size != kGroup || !words.dynamic) {
    return refused(fmt::format("{} microscaled inputs of {} bits in groups of {}",
                               words.dynamic ? "dynamic" : "static", words.bits, words.group_size));
  }
  return dynamic_of(words.bits == 4 ? RowQuantization::kMxFp4 : RowQuantization::kMxFp8, kGroup);
}

// @param words of 4 or 8 bits
ActivationScheme scheme_of(const Words& words) {
  if (words.bits == 4 && words.is_float) {
    return words.exponents ? microscaled(words) : nvfp4_of(words);
  }
  if (words.bits != 8) {
    return refused(
        fmt::format("{} inputs of {} bits", words.is_float ? "float" : "integer", words.bits));
  }
  if (words.is_float && words.exponents) return microscaled(words);
  if (words.cover == Cover::kTensor) {
    if (!words.dynamic) {
      return static_of(words.is_float ? RowQuantization::kFp8Static : RowQuantization::kInt8Static,
                       "input_scale");
    }
    return token_instead_of_batch(words.is_float ? RowQuantization::kFp8Token
                                                 : RowQuantization::kInt8Token);
  }
  if (!words.dynamic) return refused("static input scales that are not per tensor");
  if (words.cover == Cover::kToken) {
    return dynamic_of(words.is_float ? RowQuantization::kFp8Token : RowQuantization::kInt8Token);
  }
  if (!words.is_float) return refused("int8 inputs in groups");
  return dynamic_of(RowQuantization::kFp8Group, words.group_size);
}

int64_t group_of(const ConfigReader& config, ConfigReader::Keys keys) {
  return std::max<int64_t>(0, config.int_in_range_or(keys, 0, -1, kMaxGroup));
}

}  // namespace

std::string describe(const ActivationScheme& scheme) {
  if (!scheme.refusal.empty()) return fmt::format("none ({})", scheme.refusal);
  std::string text(to_string(scheme.format.kind));
  if (scheme.format.group_size > 0)
    text += fmt::format(" (groups of {})", scheme.format.group_size);
  if (scheme.format.power_of_two_scales) text += " with powers of two for scales";
  return text;
}

ActivationScheme compressed_tensors_activations(const ConfigReader& group,
                                                std::string_view format) {
  if (!group.has("input_activations")) return {};
  const ConfigReader inputs = group.object_or_empty("input_activations");
  Words words;
  words.bits = inputs.require_int({"num_bits"}, 1, 16);
  words.is_float = inputs.string_or({"type"}, "int") == "float";
  words.group_size = group_of(inputs, {"group_size"});
  // "local": the scales of groups are dynamic, the global one is in the file.
  const bool local = inputs.is_text("dynamic") && inputs.string_or({"dynamic"}, "") == "local";
  words.dynamic = !local && inputs.bool_or({"dynamic"}, false);
  words.exponents =
      inputs.string_or({"scale_dtype"}, "") == "torch.uint8" || format.starts_with("mxfp");
  if (!inputs.bool_or({"symmetric"}, true)) return refused("asymmetric inputs");
  const std::string strategy = inputs.string_or({"strategy"}, "tensor");
  if (strategy == "token") {
    words.cover = Cover::kToken;
  } else if (strategy == "group" || strategy == "tensor_group") {
    words.cover = Cover::kGroup;
    if (words.group_size == 0) return refused("inputs in groups without group_size");
  } else if (strategy != "tensor") {
    return refused(fmt::format("input_activations.strategy '{}'", strategy));
  }
  return scheme_of(words);
}

ActivationScheme fp8_activations(const ConfigReader& config) {
  const std::string how = config.string_or({"activation_scheme"}, "dynamic");
  if (how != "static" && how != "dynamic") {
    return refused(fmt::format("activation_scheme '{}'", how));
  }
  Words words{.bits = 8, .dynamic = how == "dynamic"};
  const auto blocks = config.find_list("weight_block_size");
  if (!blocks) return scheme_of(words);
  if (!words.dynamic) return refused("static inputs with block-quantized weights");
  words.cover = Cover::kGroup;
  // Blocks are [out, in] and were checked: the inputs' groups are as long as theirs.
  words.group_size = std::strtoll(blocks->back().c_str(), nullptr, 10);
  ActivationScheme scheme = scheme_of(words);
  scheme.format.power_of_two_scales = config.string_or({"scale_fmt"}, "") == "ue8m0";
  return scheme;
}

ActivationScheme modelopt_activations(std::string_view algorithm, bool declares_inputs) {
  if (algorithm == "FP8") return static_of(RowQuantization::kFp8Static, "input_scale");
  if (algorithm == "FP8_PER_CHANNEL_PER_TOKEN") return dynamic_of(RowQuantization::kFp8Token);
  if (algorithm == "W8A8_SQ_PER_CHANNEL") {
    return static_of(RowQuantization::kInt8Static, "input_scale");
  }
  if (algorithm == "MXFP4") return dynamic_of(RowQuantization::kMxFp4, 32);
  if (algorithm == "MXFP8") return dynamic_of(RowQuantization::kMxFp8, 32);
  if ((algorithm == "NVFP4" || algorithm == "NVFP4_AWQ") && declares_inputs) {
    ActivationScheme scheme = static_of(RowQuantization::kNvFp4Static, "input_scale", 16);
    scheme.scale_is_inverse = true;
    return scheme;
  }
  if (algorithm == "W4A8_MXFP4_FP8") {
    return refused("W4A8_MXFP4_FP8 declares static fp8 inputs, its exporter writes no scale");
  }
  return {};
}

ActivationScheme quark_activations(const ConfigReader& global_quant_config) {
  if (!global_quant_config.has("input_tensors")) return {};
  const ConfigReader inputs = global_quant_config.object_or_empty("input_tensors");
  const std::string dtype = inputs.string_or({"dtype"}, "");
  const std::string qscheme = inputs.string_or({"qscheme"}, "");
  Words words{.bits = 8, .dynamic = inputs.bool_or({"is_dynamic"}, false)};
  if (dtype == "int8") {
    words.is_float = false;
    if (!inputs.bool_or({"symmetric"}, true)) return refused("asymmetric inputs");
  } else if (dtype == "fp4") {
    words.bits = 4;
  } else if (dtype != "fp8_e4m3") {
    return refused(fmt::format("inputs of dtype '{}'", dtype));
  }
  words.exponents = inputs.string_or({"scale_format"}, "") == "e8m0";
  if (qscheme == "per_group") {
    words.cover = Cover::kGroup;
    words.group_size = group_of(inputs, {"group_size"});
    if (words.group_size == 0) return refused("inputs in groups without group_size");
  } else if (qscheme == "per_channel" || qscheme == "per_token") {
    words.cover = Cover::kToken;
  } else if (qscheme != "per_tensor") {
    return refused(fmt::format("inputs of qscheme '{}'", qscheme));
  }
  return scheme_of(words);
}

ActivationScheme auto_round_activations(const ConfigReader& config) {
  Words words;
  words.bits = config.int_in_range_or({"act_bits"}, 16, 1, 32);
  if (words.bits >= 16) return {};
  std::string type = config.string_or({"act_data_type"}, "");
  if (type.empty()) type = config.string_or({"data_type"}, "int");
  words.is_float = !type.starts_with("int");
  words.exponents = type.starts_with("mx_fp");
  words.dynamic = config.bool_or({"act_dynamic"}, true);
  words.group_size = group_of(config, {"act_group_size"});
  if (type.starts_with("nv_fp")) {
    // "nv_fp4_with_static_gs": groups are dynamic, the global scale is in the file.
    words.dynamic = !type.ends_with("static_gs");
  } else if (!config.bool_or({"act_sym"}, true)) {
    return refused("asymmetric inputs");
  }
  // 0: the tensor; -1 or nothing: a token, where the scale is dynamic.
  const int64_t group = config.int_in_range_or({"act_group_size"}, -1, -1, kMaxGroup);
  words.cover = group > 0                      ? Cover::kGroup
                : group == 0 || !words.dynamic ? Cover::kTensor
                                               : Cover::kToken;
  return scheme_of(words);
}

ActivationScheme mxfp8_activations() { return dynamic_of(RowQuantization::kMxFp8, 32); }

}  // namespace gantry
