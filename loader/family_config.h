#pragma once

#include "kernels/base/export.h"

// Readers that the family table points at: from a config to what a layer computes. Internal.

namespace gantry GANTRY_API {

class ConfigReader;
struct MoeLayerSpec;

namespace family_config {

void mixtral(const ConfigReader& config, MoeLayerSpec& layer);
void minimax_m2(const ConfigReader& config, MoeLayerSpec& layer);
void minimax_m3(const ConfigReader& config, MoeLayerSpec& layer);
void phimoe(const ConfigReader& config, MoeLayerSpec& layer);
void qwen2_moe(const ConfigReader& config, MoeLayerSpec& layer);
void qwen3_moe(const ConfigReader& config, MoeLayerSpec& layer);
void qwen3_next(const ConfigReader& config, MoeLayerSpec& layer);
void qwen3_5_moe(const ConfigReader& config, MoeLayerSpec& layer);
void qwen3_vl_moe(const ConfigReader& config, MoeLayerSpec& layer);
void olmoe(const ConfigReader& config, MoeLayerSpec& layer);
void deepseek_v2(const ConfigReader& config, MoeLayerSpec& layer);
void deepseek_v3(const ConfigReader& config, MoeLayerSpec& layer);
void glm4_moe(const ConfigReader& config, MoeLayerSpec& layer);
void axk1(const ConfigReader& config, MoeLayerSpec& layer);
void deepseek_v4(const ConfigReader& config, MoeLayerSpec& layer);
void kimi_linear(const ConfigReader& config, MoeLayerSpec& layer);
void mistral4(const ConfigReader& config, MoeLayerSpec& layer);
void mimo_v2(const ConfigReader& config, MoeLayerSpec& layer);
void exaone_moe(const ConfigReader& config, MoeLayerSpec& layer);
void bailing_moe(const ConfigReader& config, MoeLayerSpec& layer);
void hunyuan_v1(const ConfigReader& config, MoeLayerSpec& layer);
void hunyuan_v3(const ConfigReader& config, MoeLayerSpec& layer);
void laguna(const ConfigReader& config, MoeLayerSpec& layer);
void cohere2_moe(const ConfigReader& config, MoeLayerSpec& layer);
void afmoe(const ConfigReader& config, MoeLayerSpec& layer);
void lfm2_moe(const ConfigReader& config, MoeLayerSpec& layer);
void ernie4_5_moe(const ConfigReader& config, MoeLayerSpec& layer);
void longcat_flash(const ConfigReader& config, MoeLayerSpec& layer);
void nemotron_h(const ConfigReader& config, MoeLayerSpec& layer);
void jamba(const ConfigReader& config, MoeLayerSpec& layer);
void dbrx(const ConfigReader& config, MoeLayerSpec& layer);
void granitemoe(const ConfigReader& config, MoeLayerSpec& layer);
void gpt_oss(const ConfigReader& config, MoeLayerSpec& layer);
void llama4(const ConfigReader& config, MoeLayerSpec& layer);
void aria(const ConfigReader& config, MoeLayerSpec& layer);
void gemma4(const ConfigReader& config, MoeLayerSpec& layer);
void step3(const ConfigReader& config, MoeLayerSpec& layer);
void step3_5(const ConfigReader& config, MoeLayerSpec& layer);
void grok(const ConfigReader& config, MoeLayerSpec& layer);
void arctic(const ConfigReader& config, MoeLayerSpec& layer);
void interns1_pro(const ConfigReader& config, MoeLayerSpec& layer);

}  // namespace family_config
}  // namespace gantry
