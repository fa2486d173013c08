#include <initializer_list>

#include "loader/family_config.h"
#include "loader/family_spec.h"
#include "loader/gguf_family.h"

// The family table: names on disk, one row a family. To add a family, write a row from the
// spellings below and point it at a reader in family_config.cpp.

namespace gantry {
namespace {

using Patterns = std::vector<TensorPattern>;

Patterns join(std::initializer_list<Patterns> lists) {
  Patterns all;
  for (const Patterns& list : lists)
    all.insert(all.end(), list.begin(), list.end());
  return all;
}

// ---- spellings of the experts' tensors -----------------------------------------------------

// One tensor an expert and projection, names of Qwen, DeepSeek and most others.
Patterns per_expert_gate_up_down() {
  return {{"{b}.experts.{e}.gate_proj", Part::kW1, Stacking::kPerExpert},
          {"{b}.experts.{e}.up_proj", Part::kW3, Stacking::kPerExpert},
          {"{b}.experts.{e}.down_proj", Part::kW2, Stacking::kPerExpert}};
}

// The same under Mixtral's names.
Patterns per_expert_w123() {
  return {{"{b}.experts.{e}.w1", Part::kW1, Stacking::kPerExpert},
          {"{b}.experts.{e}.w3", Part::kW3, Stacking::kPerExpert},
          {"{b}.experts.{e}.w2", Part::kW2, Stacking::kPerExpert}};
}

// Gate and up of one expert in one tensor [2I, H].
Patterns per_expert_gate_up() {
  return {{"{b}.experts.{e}.gate_up_proj", Part::kW13, Stacking::kPerExpert, Orientation::kOutIn,
           GateUp::kConcatenated}};
}

// What Transformers 5 keeps in memory: gate_up_proj [E, 2I, H], down_proj [E, H, I]; transposed in
// the families that say kInOut; interleaved in gpt-oss.
Patterns fused_3d(Orientation orientation, GateUp gate_up = GateUp::kConcatenated) {
  return {{"{b}.experts.gate_up_proj", Part::kW13, Stacking::kStacked3d, orientation, gate_up,
           Naming::kParameter},
          {"{b}.experts.down_proj", Part::kW2, Stacking::kStacked3d, orientation, GateUp::kSeparate,
           Naming::kParameter}};
}

// Marks spellings as those of Transformers 5, where the files' own come first.
Patterns in_transformers(Patterns patterns) {
  for (TensorPattern& pattern : patterns)
    pattern.transformers = true;
  return patterns;
}

Patterns standard_experts() {
  return join({per_expert_gate_up_down(), fused_3d(Orientation::kOutIn), per_expert_gate_up()});
}

Patterns mixtral_experts() {
  // Some exporters write Mixtral under gate/up/down names.
  return join({per_expert_w123(), fused_3d(Orientation::kOutIn), per_expert_gate_up_down()});
}

// ---- the rest of a block -------------------------------------------------------------------

Patterns router(std::string_view name) { return {{name, Part::kRouter}}; }

Patterns correction_bias(std::initializer_list<std::string_view> names) {
  Patterns list;
  for (const std::string_view name : names) {
    list.push_back({name, Part::kCorrectionBias, Stacking::kSingle, Orientation::kOutIn,
                    GateUp::kSeparate, Naming::kExact});
  }
  return list;
}

Patterns gate_router() { return router("{b}.gate"); }

// Router and correction bias of DeepSeek-V3 and its many relatives.
Patterns deepseek_router() {
  return join({gate_router(), correction_bias({"{b}.gate.e_score_correction_bias"})});
}

Patterns shared_mlp(std::string_view gate, std::string_view up, std::string_view down) {
  return {{gate, Part::kSharedW1}, {up, Part::kSharedW3}, {down, Part::kSharedW2}};
}

Patterns shared_experts() {
  return shared_mlp("{b}.shared_experts.gate_proj", "{b}.shared_experts.up_proj",
                    "{b}.shared_experts.down_proj");
}

Patterns shared_expert() {
  return shared_mlp("{b}.shared_expert.gate_proj", "{b}.shared_expert.up_proj",
                    "{b}.shared_expert.down_proj");
}

Patterns shared_mlp_block() {
  return shared_mlp("{b}.shared_mlp.gate_proj", "{b}.shared_mlp.up_proj",
                    "{b}.shared_mlp.down_proj");
}

Patterns qwen_shared_expert() {
  return join({shared_expert(), {{"{b}.shared_expert_gate", Part::kSharedGate}}});
}

Patterns exact(std::string_view name, Part part) {
  return {{name, part, Stacking::kSingle, Orientation::kOutIn, GateUp::kSeparate, Naming::kExact}};
}

// ---- the table -----------------------------------------------------------------------------

std::vector<FamilySpec> make_table() {
  namespace read = family_config;
  std::vector<FamilySpec> table;

  table.push_back({.name = "mixtral",
                   .model_types = {"mixtral", "minimax"},
                   .blocks = {"block_sparse_moe", "mlp"},
                   .transformers_block = 1,
                   .tensors = join({mixtral_experts(), gate_router()}),
                   .read = read::mixtral});
  table.push_back({.name = "minimax_m2",
                   .model_types = {"minimax_m2"},
                   .blocks = {"block_sparse_moe", "mlp"},
                   .transformers_block = 1,
                   .tensors = join({mixtral_experts(), gate_router(),
                                    correction_bias({"{b}.e_score_correction_bias",
                                                     "{b}.gate.e_score_correction_bias"})}),
                   .read = read::minimax_m2});
  table.push_back(
      {.name = "minimax_m3",
       .model_types = {"minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"},
       .blocks = {"block_sparse_moe", "mlp"},
       .transformers_block = 1,
       .tensors = join({mixtral_experts(),
                        gate_router(),
                        correction_bias({"{b}.e_score_correction_bias"}),
                        in_transformers(correction_bias({"{b}.gate.e_score_correction_bias"})),
                        shared_experts(),
                        {{"{b}.shared_experts.gate_up_proj", Part::kSharedW13, Stacking::kSingle,
                          Orientation::kOutIn, GateUp::kConcatenated}}}),
       .read = read::minimax_m3});
  table.push_back(
      {.name = "phimoe",
       .model_types = {"phimoe"},
       .blocks = {"block_sparse_moe", "mlp"},
       .transformers_block = 1,
       .tensors = join({mixtral_experts(), gate_router(), in_transformers(router("{b}.router"))}),
       .read = read::phimoe});
  table.push_back({.name = "qwen2_moe",
                   .model_types = {"qwen2_moe"},
                   .tensors = join({standard_experts(), gate_router(), qwen_shared_expert()}),
                   .read = read::qwen2_moe});
  table.push_back(
      {.name = "qwen3_moe",
       .model_types = {"qwen3_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "mellum"},
       .tensors = join({standard_experts(), gate_router()}),
       .read = read::qwen3_moe});
  table.push_back({.name = "qwen3_next",
                   .model_types = {"qwen3_next"},
                   .tensors = join({standard_experts(), gate_router(), qwen_shared_expert()}),
                   .read = read::qwen3_next});
  table.push_back(
      {.name = "qwen3_5_moe",
       .model_types = {"qwen3_5_moe", "qwen3_5_moe_text", "qwen3_6_moe", "qwen3_6_moe_text"},
       .tensors = join({standard_experts(), gate_router(), qwen_shared_expert()}),
       .read = read::qwen3_5_moe});
  table.push_back(
      {.name = "qwen3_vl_moe",
       .model_types = {"qwen3_vl_moe", "qwen3_vl_moe_text"},
       // Published files are [in, out]; Transformers 5 saves [out, in] under the same names.
       .tensors =
           join({fused_3d(Orientation::kInOut), in_transformers(fused_3d(Orientation::kOutIn)),
                 per_expert_gate_up_down(), gate_router()}),
       .read = read::qwen3_vl_moe});
  table.push_back({.name = "olmoe",
                   .model_types = {"olmoe", "flex_olmo"},
                   .tensors = join({standard_experts(), gate_router()}),
                   .read = read::olmoe});
  table.push_back({.name = "deepseek_v2",
                   .model_types = {"deepseek_v2"},
                   .tensors = join({standard_experts(), gate_router(), shared_experts()}),
                   .read = read::deepseek_v2});
  table.push_back(
      {.name = "deepseek_v3",
       .model_types = {"deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "pangu_ultra_moe"},
       .tensors = join({standard_experts(), deepseek_router(), shared_experts()}),
       .read = read::deepseek_v3});
  table.push_back(
      {.name = "axk1",
       .model_types = {"axk1"},
       .tensors = join({standard_experts(),
                        deepseek_router(),
                        shared_experts(),
                        {{"post_mlp_layernorm", Part::kOutputNorm}},
                        in_transformers({{"{b}.post_mlp_layernorm", Part::kOutputNorm}})}),
       .read = read::axk1});
  table.push_back(
      {.name = "deepseek_v4",
       .model_types = {"deepseek_v4"},
       .blocks = {"ffn", "mlp"},
       .transformers_block = 1,
       // gate.bias is the correction bias here, so it stands before the router's own kinds.
       .tensors = join(
           {mixtral_experts(), correction_bias({"{b}.gate.bias"}),
            in_transformers(correction_bias({"{b}.gate.e_score_correction_bias"})), gate_router(),
            exact("{b}.gate.tid2eid", Part::kHashTable), exact("{b}.gate.bias_vl", Part::kOther),
            shared_mlp("{b}.shared_experts.w1", "{b}.shared_experts.w3", "{b}.shared_experts.w2"),
            in_transformers(shared_experts())}),
       .read = read::deepseek_v4});
  table.push_back({.name = "kimi_linear",
                   .model_types = {"kimi_linear"},
                   .blocks = {"block_sparse_moe", "mlp"},
                   .transformers_block = 1,
                   .tensors = join({mixtral_experts(), deepseek_router(), shared_experts()}),
                   .read = read::kimi_linear});
  table.push_back({.name = "glm4_moe",
                   .model_types = {"glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm4v_moe_text",
                                   "glm_moe_dsa", "glm5_next", "solar_open", "dots1"},
                   .tensors = join({standard_experts(), deepseek_router(), shared_experts()}),
                   .read = read::glm4_moe});
  table.push_back({.name = "mistral4",
                   .model_types = {"mistral4"},
                   .tensors = join({standard_experts(), gate_router(), shared_experts()}),
                   .read = read::mistral4});
  table.push_back({.name = "mimo_v2",
                   .model_types = {"mimo_v2_flash", "mimo_v2"},
                   .tensors = join({standard_experts(), deepseek_router()}),
                   .read = read::mimo_v2});
  table.push_back(
      {.name = "exaone_moe",
       .model_types = {"exaone_moe"},
       .tensors = join({standard_experts(), gate_router(),
                        correction_bias({"{b}.e_score_correction_bias"}),
                        in_transformers(correction_bias({"{b}.gate.e_score_correction_bias"})),
                        shared_experts()}),
       .read = read::exaone_moe});
  table.push_back({.name = "bailing_moe",
                   .model_types = {"bailing_moe", "bailing_moe_v2", "bailing_moe_linear"},
                   .tensors = join({standard_experts(), gate_router(),
                                    correction_bias({"{b}.gate.expert_bias"}), shared_experts()}),
                   .read = read::bailing_moe});
  table.push_back({.name = "hunyuan_v1_moe",
                   .model_types = {"hunyuan_v1_moe", "hunyuan"},
                   .tensors = join({standard_experts(), router("{b}.gate.wg"), shared_mlp_block()}),
                   .read = read::hunyuan_v1});
  table.push_back(
      {.name = "hunyuan_v3",
       .model_types = {"hy_v3"},
       .tensors = join({standard_experts(), router("{b}.router.gate"),
                        in_transformers(gate_router()), correction_bias({"{b}.expert_bias"}),
                        in_transformers(correction_bias({"{b}.e_score_correction_bias"})),
                        shared_mlp_block(), in_transformers(shared_experts())}),
       .read = read::hunyuan_v3});
  table.push_back(
      {.name = "laguna",
       .model_types = {"laguna"},
       .tensors = join({standard_experts(), gate_router(),
                        correction_bias({"{b}.experts.e_score_correction_bias"}),
                        in_transformers(correction_bias({"{b}.gate.e_score_correction_bias"})),
                        shared_expert(), in_transformers(shared_experts())}),
       .read = read::laguna});
  table.push_back({.name = "cohere2_moe",
                   .model_types = {"cohere2_moe"},
                   .tensors = join({standard_experts(), gate_router(), shared_experts()}),
                   .read = read::cohere2_moe});
  table.push_back({.name = "afmoe",
                   .model_types = {"afmoe"},
                   .tensors = join({standard_experts(), router("{b}.router.gate"),
                                    correction_bias({"{b}.expert_bias"}), shared_experts()}),
                   .read = read::afmoe});
  table.push_back(
      {.name = "lfm2_moe",
       .model_types = {"lfm2_moe"},
       .blocks = {"feed_forward"},
       .tensors = join({mixtral_experts(), gate_router(), correction_bias({"{b}.expert_bias"})}),
       .read = read::lfm2_moe});
  table.push_back(
      {.name = "ernie4_5_moe",
       .model_types = {"ernie4_5_moe"},
       .tensors =
           join({standard_experts(), gate_router(),
                 correction_bias({"{b}.moe_statics.e_score_correction_bias"}),
                 in_transformers(correction_bias({"{b}.gate.moe_statics.e_score_correction_bias"})),
                 shared_experts()}),
       .read = read::ernie4_5_moe});
  table.push_back({.name = "longcat_flash",
                   .model_types = {"longcat_flash"},
                   .tensors = join({standard_experts(), router("{b}.router.classifier"),
                                    correction_bias({"{b}.router.e_score_correction_bias"})}),
                   .read = read::longcat_flash});
  table.push_back({.name = "nemotron_h",
                   .model_types = {"nemotron_h"},
                   .blocks = {"mixer"},
                   .tensors = join({{{"{b}.experts.{e}.up_proj", Part::kW1, Stacking::kPerExpert},
                                     {"{b}.experts.{e}.down_proj", Part::kW2, Stacking::kPerExpert},
                                     {"{b}.experts.up_proj", Part::kW1, Stacking::kStacked3d,
                                      Orientation::kOutIn, GateUp::kSeparate, Naming::kParameter},
                                     {"{b}.experts.down_proj", Part::kW2, Stacking::kStacked3d,
                                      Orientation::kOutIn, GateUp::kSeparate, Naming::kParameter}},
                                    deepseek_router(),
                                    {{"{b}.shared_experts.up_proj", Part::kSharedW1},
                                     {"{b}.shared_experts.down_proj", Part::kSharedW2},
                                     {"{b}.fc1_latent_proj", Part::kLatentIn},
                                     {"{b}.fc2_latent_proj", Part::kLatentOut}}}),
                   .read = read::nemotron_h});
  table.push_back({.name = "jamba",
                   .model_types = {"jamba"},
                   .blocks = {"feed_forward"},
                   .tensors = join({standard_experts(), router("{b}.router")}),
                   .read = read::jamba});
  table.push_back({.name = "dbrx",
                   .model_types = {"dbrx"},
                   .container = "blocks",
                   .blocks = {"ffn"},
                   .tensors = join({exact("{b}.experts.mlp.w1", Part::kW1),
                                    exact("{b}.experts.mlp.v1", Part::kW3),
                                    exact("{b}.experts.mlp.w2", Part::kW2),
                                    per_expert_gate_up_down(), router("{b}.router.layer")}),
                   .vllm_reads_stacked = true,
                   .read = read::dbrx});
  // w1 and v1 are [E * I, H]; w2 holds one [I, H] an expert, transposed.
  for (TensorPattern& pattern : table.back().tensors) {
    if (pattern.naming != Naming::kExact) continue;
    pattern.stacking = Stacking::kStacked2d;
    if (pattern.part == Part::kW2) pattern.orientation = Orientation::kInOut;
  }
  table.push_back(
      {.name = "granitemoe",
       .model_types = {"granitemoe", "granitemoeshared", "granitemoehybrid", "granitemoe_swa"},
       .blocks = {"block_sparse_moe"},
       .tensors = join({{{"{b}.input_linear", Part::kW13, Stacking::kStacked3d, Orientation::kOutIn,
                          GateUp::kConcatenated},
                         {"{b}.output_linear", Part::kW2, Stacking::kStacked3d}},
                        in_transformers(fused_3d(Orientation::kOutIn)),
                        per_expert_gate_up_down(),
                        router("{b}.router.layer"),
                        in_transformers(router("{b}.router")),
                        {{"shared_mlp.input_linear", Part::kSharedW13, Stacking::kSingle,
                          Orientation::kOutIn, GateUp::kConcatenated},
                         {"shared_mlp.output_linear", Part::kSharedW2}}}),
       .scope = {"{b}.", "shared_mlp."},
       .shared_beside_block = true,
       .vllm_reads_stacked = true,
       .read = read::granitemoe});
  table.push_back({.name = "gpt_oss",
                   .model_types = {"gpt_oss"},
                   // Exporters that quantize linear layers split the experts.
                   .tensors = join({fused_3d(Orientation::kInOut, GateUp::kInterleaved),
                                    per_expert_gate_up_down(), router("{b}.router")}),
                   .stacks_mxfp4 = true,
                   .vllm_reads_stacked = true,
                   .read = read::gpt_oss});
  table.push_back({.name = "llama4",
                   .model_types = {"llama4", "llama4_text"},
                   .blocks = {"feed_forward"},
                   .tensors = join({fused_3d(Orientation::kInOut), per_expert_gate_up_down(),
                                    router("{b}.router"), shared_expert()}),
                   .vllm_reads_stacked = true,
                   .read = read::llama4});
  table.push_back(
      {.name = "aria",
       .model_types = {"aria_text", "aria"},
       .tensors = join({{{"{b}.experts.fc1", Part::kW13, Stacking::kStacked3d, Orientation::kInOut,
                          GateUp::kConcatenated},
                         {"{b}.experts.fc2", Part::kW2, Stacking::kStacked3d, Orientation::kInOut}},
                        per_expert_gate_up_down(),
                        router("{b}.router"),
                        shared_experts()}),
       .vllm_reads_stacked = true,
       .read = read::aria});
  table.push_back(
      {.name = "gemma4",
       .model_types = {"gemma4_text", "gemma4", "gemma4_unified", "gemma4_unified_text"},
       .blocks = {"experts"},
       .tensors = {{"experts.gate_up_proj", Part::kW13, Stacking::kStacked3d, Orientation::kOutIn,
                    GateUp::kConcatenated, Naming::kParameter},
                   {"experts.down_proj", Part::kW2, Stacking::kStacked3d, Orientation::kOutIn,
                    GateUp::kSeparate, Naming::kParameter},
                   {"experts.{e}.gate_proj", Part::kW1, Stacking::kPerExpert},
                   {"experts.{e}.up_proj", Part::kW3, Stacking::kPerExpert},
                   {"experts.{e}.down_proj", Part::kW2, Stacking::kPerExpert},
                   {"router.proj", Part::kRouter},
                   exact("router.scale", Part::kRouterScale)[0],
                   exact("router.per_expert_scale", Part::kPerExpertScale)[0]},
       .scope = {"experts.", "router."},
       .read = read::gemma4});

  const Patterns step3_tensors = join(
      {{{"{b}.gate_proj", Part::kW1, Stacking::kStacked3d},
        {"{b}.up_proj", Part::kW3, Stacking::kStacked3d},
        {"{b}.down_proj", Part::kW2, Stacking::kStacked3d}},
       per_expert_gate_up_down(),
       gate_router(),
       correction_bias({"{b}.router_bias"}),
       shared_mlp("share_expert.gate_proj", "share_expert.up_proj", "share_expert.down_proj")});
  table.push_back({.name = "step3",
                   .model_types = {"step3", "step3_text", "step3_vl"},
                   .blocks = {"moe"},
                   .tensors = step3_tensors,
                   .scope = {"{b}.", "share_expert."},
                   .vllm_reads_stacked = true,
                   .read = read::step3});
  table.push_back({.name = "step3_5",
                   .model_types = {"step3p5", "step3p7", "step3p7_text"},
                   .blocks = {"moe"},
                   .tensors = step3_tensors,
                   .scope = {"{b}.", "share_expert."},
                   .vllm_reads_stacked = true,
                   .read = read::step3_5});
  table.push_back({.name = "grok",
                   .model_types = {"grok", "grok-1", "grok1", "grok2"},
                   .blocks = {"block_sparse_moe", "moe_block"},
                   .tensors = join({mixtral_experts(),
                                    {{"{b}.experts.{e}.linear", Part::kW1, Stacking::kPerExpert},
                                     {"{b}.experts.{e}.linear_v", Part::kW3, Stacking::kPerExpert},
                                     {"{b}.experts.{e}.linear_1", Part::kW2, Stacking::kPerExpert}},
                                    gate_router()}),
                   .read = read::grok});
  table.push_back({.name = "arctic",
                   .model_types = {"arctic"},
                   .blocks = {"block_sparse_moe"},
                   .tensors = join({mixtral_experts(), gate_router()}),
                   .read = read::arctic});
  table.push_back({.name = "interns1_pro",
                   .model_types = {"interns1_pro", "interns1_pro_text", "interns1_moe"},
                   .tensors = join({standard_experts(), gate_router()}),
                   .read = read::interns1_pro});
  table.push_back(gguf_family());
  return table;
}

}  // namespace

std::span<const FamilySpec> family_specs() {
  static const std::vector<FamilySpec> table = make_table();
  return table;
}

}  // namespace gantry
