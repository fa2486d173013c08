#include "tools/export_config.h"

#include <algorithm>
#include <string_view>

#include "tools/export_formats.h"

namespace gantry::cli {
namespace {

Json with_model_parts(ModuleNames modules, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    if (std::find(modules.begin(), modules.end(), part) == modules.end())
      modules.emplace_back(part);
  }
  return modules;
}

// ---- compressed-tensors --------------------------------------------------------------------

// What the arguments of weights and of inputs have in common.
Json quant_args(const WeightQuantization& quantization) {
  const bool exponents = quantization.scale == ScaleType::kE8M0;
  return {{"actorder", nullptr},
          {"block_structure", nullptr},
          {"dynamic", false},
          {"group_size", quantization.group > 0 ? Json(quantization.group) : Json(nullptr)},
          {"num_bits", bits_of(quantization.element)},
          {"observer", "memoryless_minmax"},
          {"observer_kwargs", Json::object()},
          {"scale_dtype", exponents                   ? Json("torch.uint8")
                          : quantization.two_levels() ? Json("torch.float8_e4m3fn")
                                                      : Json(nullptr)},
          {"strategy", "group"},
          {"symmetric", !quantization.zero_points},
          {"type", quantization.is_integer() ? "int" : "float"},
          {"zp_dtype", quantization.zero_points ? Json("torch.int8") : Json(nullptr)}};
}

Json weight_args(const WeightQuantization& quantization) {
  Json args = quant_args(quantization);
  if (quantization.two_levels()) {
    args["strategy"] = "tensor_group";
  } else if (quantization.group == 0) {
    args["strategy"] = quantization.rows == 0 ? "tensor" : "channel";
  }
  return args;
}

Json input_args(const WeightQuantization& quantization, ExportActivations activations) {
  if (activations == ExportActivations::kNone) return nullptr;
  Json args = weight_args(quantization);
  const bool is_static = activations == ExportActivations::kStatic;
  args["observer"] = is_static ? Json("static_minmax") : Json(nullptr);
  args["dynamic"] = !is_static;
  if (is_static && quantization.two_levels()) args["dynamic"] = "local";
  if (activations == ExportActivations::kToken) args["strategy"] = "token";
  return args;
}

// ---- GPTQModel -----------------------------------------------------------------------------

bool is_router(std::string_view module) {
  return module.ends_with(".gate") || module.ends_with(".router");
}

// GPTQModel knows each family's router and its attention's norms; only further linear layers must
// be named. Its lm_head is a key of its own.
ModuleNames beyond_routers(const ModuleNames& plain_modules) {
  ModuleNames rest;
  for (const std::string& module : plain_modules) {
    if (!is_router(module) && module != "lm_head") rest.push_back(module);
  }
  return rest;
}

// A regular expression that matches the name alone.
std::string escaped(const std::string& module) {
  std::string pattern;
  for (const char c : module)
    pattern += c == '.' ? std::string("\\.") : std::string(1, c);
  return pattern + "$";
}

// ---- ModelOpt ------------------------------------------------------------------------------

// Of its AWQ algorithms, whose config.json has no config groups: what readers take where it says
// nothing.
int64_t awq_group(std::string_view algorithm) { return algorithm == "NVFP4_AWQ" ? 16 : 128; }

}  // namespace

Json compressed_tensors_config(const ExportFormat& format, const ModuleNames& plain_modules) {
  const WeightQuantization& quantization = format.matrix.quantization;
  const Json group = {{"format", format.algorithm},
                      {"input_activations", input_args(quantization, format.activations)},
                      {"output_activations", nullptr},
                      {"targets", Json::array({"Linear"})},
                      {"weights", weight_args(quantization)}};
  return {{"config_groups", {{"group_0", group}}},
          {"format", format.algorithm},
          {"global_compression_ratio", nullptr},
          {"ignore", with_model_parts(plain_modules, {"lm_head"})},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"},
          {"sparsity_config", Json::object()},
          {"transform_config", Json::object()},
          {"version", "0.19.0"}};
}

// `meta` holds the settings of a quantizer's run: who wrote the file, and the release whose
// conventions it follows, which GPTQModel's loader asks for where zero points are stored less one.
// "-:" leaves a module as it is.
Json gptqmodel_config(const ExportFormat& format, const ModuleNames& plain_modules) {
  const bool is_awq = format.algorithm == "awq";
  const char* layout = is_awq ? "gemm" : "gptq";
  Json config = {{"bits", bits_of(format.matrix.quantization.element)},
                 {"checkpoint_format", layout},
                 {"desc_act", format.desc_act},
                 {"format", layout},
                 {"group_size", format.matrix.quantization.group},
                 {"lm_head", false},
                 {"meta", {{"quantizer", Json::array({"gantry", "gptqmodel:7.7.0"})}}},
                 {"method", format.algorithm},
                 {"pack_dtype", "int32"},
                 {"quant_method", format.algorithm}};
  const ModuleNames rest = beyond_routers(plain_modules);
  if (is_awq) {
    config["version"] = "gemm";
    config["zero_point"] = true;
    // What AutoAWQ's readers look at; GPTQModel's own loader takes the list below alone.
    if (!rest.empty()) config["modules_to_not_convert"] = rest;
  } else {
    config["sym"] = !format.matrix.quantization.zero_points;
  }
  for (const std::string& module : rest)
    config["dynamic"]["-:" + escaped(module)] = Json::object();
  return config;
}

Json modelopt_config(const ExportFormat& format, const ModuleNames& plain_modules) {
  const WeightQuantization& quantization = format.matrix.quantization;
  Json ignore = with_model_parts(plain_modules, {"lm_head", "model.embed_tokens"});
  std::sort(ignore.begin(), ignore.end());
  const Json producer = {{"name", "modelopt"}, {"version", "0.47.0"}};
  if (format.matrix.find(ExportRole::kInputFactors) != nullptr) {
    Json config = {{"ignore", ignore},
                   {"quant_algo", format.algorithm},
                   {"producer", producer},
                   {"quant_method", "modelopt"}};
    if (quantization.group != awq_group(format.algorithm))
      config["group_size"] = quantization.group;
    return config;
  }
  Json args = {{"dynamic", false}, {"num_bits", bits_of(quantization.element)}, {"type", "float"}};
  if (quantization.group > 0) args["group_size"] = quantization.group;
  Json group = Json::object();
  if (format.static_inputs()) group["input_activations"] = args;
  group["weights"] = args;
  group["targets"] = Json::array({"Linear"});
  return {{"config_groups", {{"group_0", group}}},
          {"ignore", ignore},
          {"quant_algo", format.algorithm},
          {"producer", producer},
          {"quant_method", "modelopt"}};
}

Json fp8_block_config(const ExportFormat& format, const ModuleNames& plain_modules) {
  const WeightQuantization& quantization = format.matrix.quantization;
  return {{"activation_scheme", "dynamic"},
          {"fmt", "e4m3"},
          {"quant_method", "fp8"},
          {"weight_block_size", Json::array({quantization.rows, quantization.group})},
          {"modules_to_not_convert", with_model_parts(plain_modules, {"lm_head"})}};
}

Json gpt_oss_mxfp4_config(const ExportFormat& /*format*/, const ModuleNames& /*plain_modules*/) {
  return {{"modules_to_not_convert",
           Json::array({"model.layers.*.self_attn", "model.layers.*.mlp.router",
                        "model.embed_tokens", "lm_head"})},
          {"quant_method", "mxfp4"}};
}

std::string with_quantization(const std::string& text, const Json& quantization_config) {
  Json config = Json::parse(text);
  config.erase("quantization_config");
  for (const char* part : {"text_config", "language_config", "llm_config"}) {
    if (config.contains(part) && config[part].is_object())
      config[part].erase("quantization_config");
  }
  config["quantization_config"] = quantization_config;
  return config.dump(2) + "\n";
}

std::vector<std::pair<std::string, Json>> quant_side_files(const Json& quantization_config) {
  const std::string method = quantization_config.at("quant_method");
  if (method == "gptq" || method == "awq") return {{"quantize_config.json", quantization_config}};
  if (method != "modelopt") return {};
  Json quantization = {{"quant_algo", quantization_config.at("quant_algo")},
                       {"kv_cache_quant_algo", nullptr}};
  if (!quantization_config.contains("config_groups")) {
    const std::string algorithm = quantization_config.at("quant_algo");
    quantization["group_size"] = quantization_config.value("group_size", awq_group(algorithm));
    quantization["has_zero_point"] = false;
    quantization["pre_quant_scale"] = true;
  } else {
    const Json& weights = quantization_config.at("config_groups").at("group_0").at("weights");
    if (weights.contains("group_size")) quantization["group_size"] = weights.at("group_size");
  }
  quantization["exclude_modules"] = quantization_config.at("ignore");
  return {{"hf_quant_config.json",
           {{"producer", quantization_config.at("producer")}, {"quantization", quantization}}}};
}

}  // namespace gantry::cli
