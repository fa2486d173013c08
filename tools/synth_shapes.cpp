#include "tools/synth_shapes.h"

#include <array>

namespace gantry::cli {

using Json = nlohmann::ordered_json;

// Keys that Gantry's readers do not need are there where engines insist on them.
std::vector<SynthShape> synth_shapes() {
  std::vector<SynthShape> shapes;
  shapes.push_back({"qwen3-30b-a3b",
                    "model.",
                    false,
                    {{"architectures", {"Qwen3MoeForCausalLM"}},
                     {"model_type", "qwen3_moe"},
                     {"torch_dtype", "bfloat16"},
                     {"hidden_size", 2048},
                     {"intermediate_size", 6144},
                     {"moe_intermediate_size", 768},
                     {"num_experts", 128},
                     {"num_experts_per_tok", 8},
                     {"norm_topk_prob", true},
                     {"decoder_sparse_step", 1},
                     {"mlp_only_layers", Json::array()},
                     {"hidden_act", "silu"},
                     {"num_attention_heads", 32},
                     {"num_key_value_heads", 4},
                     {"head_dim", 128},
                     {"vocab_size", 151936},
                     {"num_hidden_layers", 48}}});
  shapes.push_back({"qwen3.5-35b-a3b",
                    "model.language_model.",
                    true,
                    {{"architectures", {"Qwen3_5MoeForConditionalGeneration"}},
                     {"model_type", "qwen3_5_moe"},
                     {"torch_dtype", "bfloat16"},
                     {"text_config",
                      {{"model_type", "qwen3_5_moe_text"},
                       {"hidden_size", 2048},
                       {"moe_intermediate_size", 512},
                       {"shared_expert_intermediate_size", 512},
                       {"num_experts", 256},
                       {"num_experts_per_tok", 8},
                       {"hidden_act", "silu"},
                       {"num_attention_heads", 16},
                       {"num_key_value_heads", 2},
                       {"head_dim", 256},
                       {"vocab_size", 248320},
                       {"num_hidden_layers", 40}}}}});
  shapes.push_back({"mixtral-8x7b",
                    "model.",
                    false,
                    {{"architectures", {"MixtralForCausalLM"}},
                     {"model_type", "mixtral"},
                     {"torch_dtype", "bfloat16"},
                     {"hidden_size", 4096},
                     {"intermediate_size", 14336},
                     {"num_local_experts", 8},
                     {"num_experts_per_tok", 2},
                     {"hidden_act", "silu"},
                     {"num_attention_heads", 32},
                     {"num_key_value_heads", 8},
                     {"vocab_size", 32000},
                     {"num_hidden_layers", 32}}});
  shapes.push_back({"deepseek-v3",
                    "model.",
                    false,
                    {{"architectures", {"DeepseekV3ForCausalLM"}},
                     {"model_type", "deepseek_v3"},
                     {"torch_dtype", "bfloat16"},
                     {"hidden_size", 7168},
                     {"intermediate_size", 18432},
                     {"moe_intermediate_size", 2048},
                     {"n_routed_experts", 256},
                     {"n_shared_experts", 1},
                     {"num_experts_per_tok", 8},
                     {"n_group", 8},
                     {"topk_group", 4},
                     {"topk_method", "noaux_tc"},
                     {"scoring_func", "sigmoid"},
                     {"norm_topk_prob", true},
                     {"routed_scaling_factor", 2.5},
                     {"first_k_dense_replace", 3},
                     {"moe_layer_freq", 1},
                     {"hidden_act", "silu"},
                     {"num_attention_heads", 128},
                     {"vocab_size", 129280},
                     {"num_hidden_layers", 61}}});
  shapes.push_back({"gpt-oss-20b",
                    "model.",
                    true,
                    {{"architectures", {"GptOssForCausalLM"}},
                     {"model_type", "gpt_oss"},
                     {"torch_dtype", "bfloat16"},
                     {"hidden_size", 2880},
                     {"intermediate_size", 2880},
                     {"num_local_experts", 32},
                     {"num_experts_per_tok", 4},
                     {"swiglu_limit", 7.0},
                     {"hidden_act", "silu"},
                     {"num_attention_heads", 64},
                     {"num_key_value_heads", 8},
                     {"head_dim", 64},
                     {"vocab_size", 201088},
                     {"num_hidden_layers", 24}}});
  shapes.push_back({"olmoe-1b-7b",
                    "model.",
                    false,
                    {{"architectures", {"OlmoeForCausalLM"}},
                     {"model_type", "olmoe"},
                     {"torch_dtype", "bfloat16"},
                     {"hidden_size", 2048},
                     {"intermediate_size", 1024},
                     {"num_experts", 64},
                     {"num_experts_per_tok", 8},
                     {"norm_topk_prob", false},
                     {"hidden_act", "silu"},
                     {"num_attention_heads", 16},
                     {"num_key_value_heads", 16},
                     {"vocab_size", 50304},
                     {"num_hidden_layers", 16}}});
  shapes.push_back({"tiny",
                    "model.",
                    false,
                    {{"architectures", {"Qwen3MoeForCausalLM"}},
                     {"model_type", "qwen3_moe"},
                     {"torch_dtype", "bfloat16"},
                     {"hidden_size", 64},
                     {"intermediate_size", 96},
                     {"moe_intermediate_size", 48},
                     {"num_experts", 8},
                     {"num_experts_per_tok", 2},
                     {"norm_topk_prob", true},
                     {"decoder_sparse_step", 1},
                     {"mlp_only_layers", Json::array()},
                     {"hidden_act", "silu"},
                     {"num_attention_heads", 4},
                     {"num_key_value_heads", 2},
                     {"vocab_size", 64},
                     {"num_hidden_layers", 2}}});
  return shapes;
}

void resize(Json& config, int num_layers, int num_experts) {
  Json& decoder = config.contains("text_config") ? config["text_config"] : config;
  const int dense = decoder.value("first_k_dense_replace", 0);
  decoder["num_hidden_layers"] = dense + num_layers;
  if (num_experts == 0) return;
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    if (decoder.contains(key)) decoder[key] = num_experts;
  }
}

}  // namespace gantry::cli
