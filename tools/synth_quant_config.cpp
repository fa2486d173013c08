#include "tools/synth_quant_config.h"

#include <string_view>

namespace gantry::cli {
namespace {

Json with_model_parts(ModuleNames modules, std::initializer_list<const char*> parts) {
  modules.insert(modules.end(), parts.begin(), parts.end());
  return modules;
}

// ---- compressed-tensors --------------------------------------------------------------------

struct QuantArgs {
  int bits = 8;
  const char* type = "float";
  const char* strategy = "channel";
  Json group = nullptr;
  const char* scale_dtype = nullptr;
};

Json quant_args(const QuantArgs& args, bool dynamic) {
  return {{"actorder", nullptr},
          {"block_structure", nullptr},
          {"dynamic", dynamic},
          {"group_size", args.group},
          {"num_bits", args.bits},
          {"observer", dynamic ? Json(nullptr) : Json("memoryless_minmax")},
          {"observer_kwargs", Json::object()},
          {"scale_dtype", args.scale_dtype == nullptr ? Json(nullptr) : Json(args.scale_dtype)},
          {"strategy", args.strategy},
          {"symmetric", true},
          {"type", args.type},
          {"zp_dtype", nullptr}};
}

Json compressed_tensors(const char* format, const QuantArgs& weights, const Json& activations,
                        const ModuleNames& plain_modules) {
  const Json group = {{"format", format},
                      {"input_activations", activations},
                      {"output_activations", nullptr},
                      {"targets", Json::array({"Linear"})},
                      {"weights", quant_args(weights, /*dynamic=*/false)}};
  return {{"config_groups", {{"group_0", group}}},
          {"format", format},
          {"global_compression_ratio", nullptr},
          {"ignore", with_model_parts(plain_modules, {"lm_head"})},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"},
          {"sparsity_config", Json::object()},
          {"transform_config", Json::object()},
          {"version", "0.19.0"}};
}

// ---- GPTQModel -----------------------------------------------------------------------------

// `meta` holds the settings of a quantizer's run; none ran here.
Json gptqmodel(const char* method, const char* format, int64_t group) {
  return {{"bits", 4},
          {"checkpoint_format", format},
          {"desc_act", false},
          {"format", format},
          {"group_size", group},
          {"lm_head", false},
          {"meta", {{"quantizer", Json::array({"gantry:synth"})}}},
          {"method", method},
          {"pack_dtype", "int32"},
          {"quant_method", method}};
}

bool is_router(std::string_view module) {
  return module.ends_with(".gate") || module.ends_with(".router");
}

// GPTQModel knows each family's router; only further modules must be named.
ModuleNames beyond_routers(const ModuleNames& plain_modules) {
  ModuleNames rest;
  for (const std::string& module : plain_modules) {
    if (!is_router(module)) rest.push_back(module);
  }
  return rest;
}

}  // namespace

Json fp8_block_config(const ModuleNames& plain_modules, int64_t /*group*/) {
  return {{"activation_scheme", "dynamic"},
          {"fmt", "e4m3"},
          {"quant_method", "fp8"},
          {"weight_block_size", Json::array({128, 128})},
          {"modules_to_not_convert", with_model_parts(plain_modules, {"lm_head"})}};
}

Json fp8_dynamic_config(const ModuleNames& plain_modules, int64_t /*group*/) {
  return compressed_tensors("float-quantized", {.bits = 8, .type = "float", .strategy = "channel"},
                            quant_args({.bits = 8, .type = "float", .strategy = "token"}, true),
                            plain_modules);
}

Json w8a8_config(const ModuleNames& plain_modules, int64_t /*group*/) {
  return compressed_tensors("int-quantized", {.bits = 8, .type = "int", .strategy = "channel"},
                            quant_args({.bits = 8, .type = "int", .strategy = "token"}, true),
                            plain_modules);
}

Json w4a16_config(const ModuleNames& plain_modules, int64_t group) {
  return compressed_tensors("pack-quantized",
                            {.bits = 4, .type = "int", .strategy = "group", .group = group},
                            nullptr, plain_modules);
}

Json mxfp4_config(const ModuleNames& plain_modules, int64_t group) {
  const QuantArgs args{.bits = 4,
                       .type = "float",
                       .strategy = "group",
                       .group = group,
                       .scale_dtype = "torch.uint8"};
  return compressed_tensors("mxfp4-pack-quantized", args, quant_args(args, /*dynamic=*/true),
                            plain_modules);
}

Json awq_config(const ModuleNames& plain_modules, int64_t group) {
  Json config = gptqmodel("awq", "gemm", group);
  config["version"] = "gemm";
  config["zero_point"] = true;
  const ModuleNames rest = beyond_routers(plain_modules);
  if (!rest.empty()) config["modules_to_not_convert"] = rest;
  return config;
}

Json gptq_config(const ModuleNames& plain_modules, int64_t group) {
  Json config = gptqmodel("gptq", "gptq", group);
  config["sym"] = false;
  for (const std::string& module : beyond_routers(plain_modules)) {
    config["dynamic"]["-:" + module] = Json::object();  // "-:" leaves a module as it is
  }
  return config;
}

Json gpt_oss_mxfp4_config(const ModuleNames& /*plain_modules*/, int64_t /*group*/) {
  return {{"modules_to_not_convert",
           Json::array({"model.layers.*.self_attn", "model.layers.*.mlp.router",
                        "model.embed_tokens", "lm_head"})},
          {"quant_method", "mxfp4"}};
}

Json nvfp4_config(const ModuleNames& plain_modules, int64_t group) {
  const Json args = {{"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", group}};
  return {
      {"config_groups",
       {{"group_0",
         {{"input_activations", args}, {"weights", args}, {"targets", Json::array({"Linear"})}}}}},
      {"ignore", with_model_parts(plain_modules, {"lm_head", "model.embed_tokens"})},
      {"quant_algo", "NVFP4"},
      {"producer", {{"name", "modelopt"}, {"version", "0.47.0"}}},
      {"quant_method", "modelopt"}};
}

std::vector<std::pair<std::string, Json>> quant_side_files(const Json& quantization_config) {
  const std::string method = quantization_config.at("quant_method");
  if (method == "gptq" || method == "awq") return {{"quantize_config.json", quantization_config}};
  if (method != "modelopt") return {};
  const Json& weights = quantization_config.at("config_groups").at("group_0").at("weights");
  return {{"hf_quant_config.json",
           {{"producer", quantization_config.at("producer")},
            {"quantization",
             {{"quant_algo", quantization_config.at("quant_algo")},
              {"kv_cache_quant_algo", nullptr},
              {"group_size", weights.at("group_size")},
              {"exclude_modules", quantization_config.at("ignore")}}}}}};
}

}  // namespace gantry::cli
