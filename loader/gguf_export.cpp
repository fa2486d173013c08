// What GGUF metadata say about MoE layers, written; gguf_config.cpp and gguf_family.cpp read it.

#include "loader/gguf_export.h"

#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "kernels/base/check.h"
#include "loader/gguf_config.h"

namespace gantry {
namespace {

struct ArchitectureName {
  std::string_view model_type;
  std::string_view architecture;
};
constexpr std::array<ArchitectureName, 19> kArchitectureNames = {
    {{"mixtral", "llama"},
     {"qwen2_moe", "qwen2moe"},
     {"qwen3_moe", "qwen3moe"},
     {"qwen3_vl_moe_text", "qwen3vlmoe"},
     {"qwen3_next", "qwen3next"},
     {"qwen3_5_moe", "qwen35moe"},
     {"qwen3_5_moe_text", "qwen35moe"},
     {"olmoe", "olmoe"},
     {"dbrx", "dbrx"},
     {"deepseek_v2", "deepseek2"},
     {"deepseek_v3", "deepseek2"},
     {"glm4_moe", "glm4moe"},
     {"dots1", "dots1"},
     {"granitemoe", "granitemoe"},
     {"ernie4_5_moe", "ernie4_5-moe"},
     {"hunyuan_v1_moe", "hunyuan-moe"},
     {"minimax_m2", "minimax-m2"},
     {"llama4_text", "llama4"},
     {"gpt_oss", "gpt-oss"}}};

// llama.cpp's converter takes these tensors over element by element in the architectures below
// (elsewhere it permutes queries and keys, splits or joins projections, or adds to norms).
constexpr std::array<std::string_view, 3> kPlainAttention = {"qwen2moe", "qwen3moe", "olmoe"};

struct NamePair {
  std::string_view hf;
  std::string_view gguf;
};
constexpr std::array<NamePair, 3> kModelNames = {{{"model.embed_tokens.", "token_embd."},
                                                  {"model.norm.", "output_norm."},
                                                  {"lm_head.", "output."}}};
constexpr std::array<NamePair, 11> kLayerNames = {{{"input_layernorm.", "attn_norm."},
                                                   {"post_attention_layernorm.", "ffn_norm."},
                                                   {"self_attn.q_proj.", "attn_q."},
                                                   {"self_attn.k_proj.", "attn_k."},
                                                   {"self_attn.v_proj.", "attn_v."},
                                                   {"self_attn.o_proj.", "attn_output."},
                                                   {"self_attn.q_norm.", "attn_q_norm."},
                                                   {"self_attn.k_norm.", "attn_k_norm."},
                                                   {"mlp.gate_proj.", "ffn_gate."},
                                                   {"mlp.up_proj.", "ffn_up."},
                                                   {"mlp.down_proj.", "ffn_down."}}};
constexpr NamePair kLayerStem = {"model.layers.", "blk."};

template <std::string_view NamePair::*kFrom, std::string_view NamePair::*kTo>
std::string translate(std::string_view architecture, const std::string& name) {
  bool plain = false;
  for (const std::string_view known : kPlainAttention)
    plain = plain || known == architecture;
  if (!plain) return name;
  for (const NamePair& pair : kModelNames) {
    if (name.starts_with(pair.*kFrom)) {
      return std::string(pair.*kTo).append(name, (pair.*kFrom).size());
    }
  }
  if (!name.starts_with(kLayerStem.*kFrom)) return name;
  const size_t stem = (kLayerStem.*kFrom).size();
  const size_t dot = name.find('.', stem);
  if (dot == std::string::npos) return name;
  const std::string_view rest = std::string_view(name).substr(dot + 1);
  for (const NamePair& pair : kLayerNames) {
    if (!rest.starts_with(pair.*kFrom)) continue;
    std::string result(kLayerStem.*kTo);
    result.append(name, stem, dot + 1 - stem).append(pair.*kTo);
    return result.append(rest.substr((pair.*kFrom).size()));
  }
  return name;
}

uint32_t gating_function(RouterScoring scoring) {
  switch (scoring) {
    case RouterScoring::kSoftmax:
      return 1;
    case RouterScoring::kSigmoid:
      return 2;
    case RouterScoring::kSoftmaxOverSelected:
      return 3;
    case RouterScoring::kSqrtSoftplus:
      return 4;
    default:
      fail(ErrorCode::kUnsupported, "GGUF has no number for this model's router scores");
  }
}

/// Compares member by member; keeps the first difference.
class Comparison {
 public:
  template <typename T>
  void add(std::string_view what, const T& a, const T& b) {
    if (found || a == b) return;
    if constexpr (std::is_enum_v<T>) {
      found = fmt::format("{} {} and {}", what, static_cast<int>(a), static_cast<int>(b));
    } else {
      found = fmt::format("{} {} and {}", what, a, b);
    }
  }
  std::optional<std::string> found;
};

void compare_activations(Comparison& to, std::string_view what, const ActivationSpec& a,
                         const ActivationSpec& b) {
  to.add(what, a.kind, b.kind);
  to.add("activation limit", a.limit, b.limit);
  if (a.kind != Activation::kSwigluOai) return;
  to.add("activation alpha", a.alpha, b.alpha);
  to.add("activation beta", a.beta, b.beta);
}

void compare_routing(Comparison& to, const RoutingSpec& a, const RoutingSpec& b) {
  to.add("routing method", a.method, b.method);
  to.add("router scoring", a.scoring, b.scoring);
  to.add("router width", a.num_experts, b.num_experts);
  to.add("top_k", a.top_k, b.top_k);
  to.add("select_on_logits", a.select_on_logits, b.select_on_logits);
  to.add("group score", a.group_score, b.group_score);
  to.add("groups", a.num_groups, b.num_groups);
  to.add("groups kept", a.topk_group, b.topk_group);
  if (a.num_groups > 1) to.add("score of masked groups", a.masked_score, b.masked_score);
  to.add("renormalize", a.renormalize, b.renormalize);
  if (a.renormalize) {
    to.add("renormalization epsilon", a.renorm_epsilon, b.renorm_epsilon);
    to.add("renormalization minimum", a.renorm_min, b.renorm_min);
  }
  to.add("routed scaling", a.scaling, b.scaling);
  to.add("identity experts", a.num_zero_experts, b.num_zero_experts);
}

std::optional<std::string> layer_difference(const MoeLayerSpec& a, const MoeLayerSpec& b) {
  Comparison to;
  to.add("layer", a.layer, b.layer);
  to.add("experts", a.num_experts, b.num_experts);
  to.add("hidden size", a.hidden_size, b.hidden_size);
  to.add("expert hidden size", a.expert_hidden_size, b.expert_hidden_size);
  to.add("intermediate size", a.intermediate_size, b.intermediate_size);
  compare_routing(to, a.routing, b.routing);
  compare_activations(to, "activation", a.activation, b.activation);
  to.add("router weight on input", a.router_weight_on_input, b.router_weight_on_input);
  to.add("router bias", a.router_bias, b.router_bias);
  to.add("correction bias", a.correction_bias, b.correction_bias);
  to.add("scale per expert", a.per_expert_scale, b.per_expert_scale);
  to.add("expert bias", a.expert_bias, b.expert_bias);
  to.add("hash table", a.hash_table, b.hash_table);
  to.add("router norm", a.router_input_norm, b.router_input_norm);
  to.add("output norm", a.output_norm, b.output_norm);
  to.add("logit softcap", a.router_logit_softcap, b.router_logit_softcap);
  to.add("output scale", a.output_scale, b.output_scale);
  to.add("shared width", a.shared.intermediate_size, b.shared.intermediate_size);
  if (a.shared.intermediate_size > 0) {
    to.add("shared gate", a.shared.gated_output, b.shared.gated_output);
    compare_activations(to, "shared activation", a.shared.activation, b.shared.activation);
  }
  return to.found;
}

/// The width of dense layers; where the config has none, all layers are of experts.
int64_t dense_width(const std::string& config_text, int64_t expert_width) {
  const auto root = nlohmann::json::parse(config_text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return expert_width;
  const auto text = root.find("text_config");
  const auto& config = text != root.end() && text->is_object() ? *text : root;
  for (const char* key : {"intermediate_size_mlp", "intermediate_size"}) {
    const auto found = config.find(key);
    if (found != config.end() && found->is_number_integer()) return found->get<int64_t>();
  }
  return expert_width;
}

std::vector<GgufKey> keys_of(const MoeModelConfig& config, const std::string& config_text,
                             const std::string& architecture) {
  const MoeLayerSpec& layer = config.layers.front();
  std::vector<GgufKey> keys = {{"general.architecture", architecture}};
  const auto add = [&](std::string_view name, auto value) {
    keys.push_back({fmt::format("{}.{}", architecture, name), value});
  };
  const auto add_size = [&](std::string_view name, int64_t value) {
    GANTRY_CHECK(value >= 0 && value <= INT32_MAX, ErrorCode::kUnsupported,
                 "{}: {} is no size that GGUF metadata have", name, value);
    add(name, static_cast<uint32_t>(value));
  };
  add_size("block_count", config.num_layers + config.num_mtp_layers);
  if (config.num_mtp_layers > 0) add_size("nextn_predict_layers", config.num_mtp_layers);
  add_size("embedding_length", layer.hidden_size);
  add_size("feed_forward_length", dense_width(config_text, layer.intermediate_size));
  add_size("expert_feed_forward_length", layer.intermediate_size);
  add_size("expert_count", layer.num_experts);
  add_size("expert_used_count", layer.routing.top_k);
  add("expert_gating_func", gating_function(layer.routing.scoring));
  add("expert_weights_norm", layer.routing.renormalize);
  if (layer.routing.scaling != 1.0F) add("expert_weights_scale", layer.routing.scaling);
  if (layer.routing.num_groups > 1) {
    add_size("expert_group_count", layer.routing.num_groups);
    add_size("expert_group_used_count", layer.routing.topk_group);
  }
  const int64_t shared = layer.shared.intermediate_size;
  if (shared > 0) add_size("expert_shared_feed_forward_length", shared);
  if (shared > 0 && shared % layer.intermediate_size == 0) {
    add_size("expert_shared_count", shared / layer.intermediate_size);
  }
  const int step = config.layers.size() > 1 ? config.layers[1].layer - layer.layer : 1;
  if (step > 1) {
    add_size("interleave_moe_layer_step", step);
  } else if (layer.layer > 0) {
    add_size("leading_dense_block_count", layer.layer);
  }
  return keys;
}

}  // namespace

std::string_view gguf_architecture(std::string_view model_type) {
  std::string known;
  for (const ArchitectureName& row : kArchitectureNames) {
    if (row.model_type == model_type) return row.architecture;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.model_type);
  }
  fail(ErrorCode::kUnsupported, "model_type {} has no GGUF architecture here; known: {}",
       model_type, known);
}

std::vector<GgufKey> gguf_metadata(const MoeModelConfig& config, const std::string& config_text,
                                   const std::string& prefix,
                                   const std::vector<TensorInfo>& tensors) {
  GANTRY_CHECK(!config.layers.empty(), ErrorCode::kUnsupported, "the model has no MoE layer");
  const std::string architecture(gguf_architecture(config.model_type));
  std::vector<GgufKey> keys = keys_of(config, config_text, architecture);
  keys.push_back({std::string(kGgufPrefixKey), prefix});
  std::vector<TensorInfo> none;
  const std::string header = gguf_header_bytes(keys, none, architecture);
  const auto source = [&](int64_t at, void* destination, int64_t size) {
    std::memcpy(destination, header.data() + at, static_cast<size_t>(size));
  };
  const GgufHeader read =
      parse_gguf_header(source, static_cast<int64_t>(header.size()), architecture);
  std::vector<const TensorInfo*> infos;
  for (const TensorInfo& tensor : tensors)
    infos.push_back(&tensor);
  const std::string text = gguf_config_text(read.metadata, infos, architecture);
  const auto difference = config_difference(config, read_moe_config(text, architecture));
  GANTRY_CHECK(!difference, ErrorCode::kUnsupported,
               "metadata of GGUF's {} cannot say what this model computes: {}", architecture,
               *difference);
  return keys;
}

std::optional<std::string> config_difference(const MoeModelConfig& a, const MoeModelConfig& b) {
  if (a.layers.size() != b.layers.size()) {
    return fmt::format("{} and {} MoE layers", a.layers.size(), b.layers.size());
  }
  if (a.num_layers != b.num_layers) {
    return fmt::format("{} and {} layers", a.num_layers, b.num_layers);
  }
  for (size_t i = 0; i < a.layers.size(); ++i) {
    if (const auto found = layer_difference(a.layers[i], b.layers[i])) {
      return fmt::format("layer {}: {}", a.layers[i].layer, *found);
    }
  }
  return std::nullopt;
}

std::string to_gguf_name(std::string_view architecture, const std::string& name) {
  return translate<&NamePair::hf, &NamePair::gguf>(architecture, name);
}

std::string from_gguf_name(std::string_view architecture, const std::string& name) {
  return translate<&NamePair::gguf, &NamePair::hf>(architecture, name);
}

}  // namespace gantry
