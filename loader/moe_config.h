#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "kernels/topk/topk_routing.h"
#include "loader/encodings/quant_config.h"
#include "loader/family_spec.h"

namespace gantry GANTRY_API {

/// The shared experts of a layer, as one dense MLP. intermediate_size 0: there are none.
struct SharedExpertSpec {
  int64_t intermediate_size = 0;
  bool gated_output = false;  ///< output is multiplied by sigmoid(x . shared_gate)
  ActivationSpec activation;
};

/// Everything that fixes what one MoE layer computes, apart from its tensors. A plain value.
struct MoeLayerSpec {
  int layer = 0;                   ///< index in the decoder stack
  int num_experts = 0;             ///< E, routed experts with weights
  int64_t hidden_size = 0;         ///< H
  int64_t expert_hidden_size = 0;  ///< H as the experts see it; differs with a latent projection
  int64_t intermediate_size = 0;   ///< I of one expert
  RoutingSpec routing;
  ActivationSpec activation;
  bool router_weight_on_input = false;  ///< x * weight before w13 instead of after w2 (Llama 4)
  bool router_bias = false;
  bool correction_bias = false;
  bool per_expert_scale = false;
  bool expert_bias = false;  ///< experts have biases on w1, w3 and w2
  bool hash_table = false;
  int64_t vocab_size = 0;  ///< rows of the hash table
  /// Router input = x / rms(x) * router_scale / sqrt(H) (Gemma 4).
  bool router_input_norm = false;
  bool output_norm = false;           ///< out = out / rms(out) * norm weight, last of all (A.X-K1)
  float norm_epsilon = 0.0F;          ///< of the two norms above
  float router_logit_softcap = 0.0F;  ///< z = tanh(z / cap) * cap, 0: none
  float output_scale = 1.0F;          ///< multiplies routed + shared output
  SharedExpertSpec shared;
  /// Zero experts may have gate and up tensors on disk (Transformers writes them); nothing reads
  /// them.
  [[nodiscard]] int num_named_experts() const noexcept {
    return num_experts + routing.num_zero_experts;
  }
  [[nodiscard]] bool has_latent() const noexcept { return expert_hidden_size != hidden_size; }
  [[nodiscard]] bool gated() const noexcept { return is_gated(activation.kind); }
};

/// What config.json says about a model's MoE layers.
struct MoeModelConfig {
  const FamilySpec* family = nullptr;
  std::string model_type;
  int num_layers = 0;                ///< of the whole decoder stack
  std::vector<MoeLayerSpec> layers;  ///< the MoE layers, ascending
  int num_mtp_layers = 0;            ///< multi-token prediction layers after the stack: not loaded
  std::optional<DType> declared_dtype;
  std::optional<QuantConfig> quant;  ///< how quantized matrices are to be read
  /// What other files of the checkpoint say about the same; they must not contradict `quant`.
  std::vector<QuantConfig> other_quant;
  std::vector<std::string> notes;

  /// The spec of a decoder layer, or null if it is not a MoE layer.
  [[nodiscard]] const MoeLayerSpec* find_layer(int layer) const noexcept;
};

/// Reads the text of a config.json.
/// @param source name used in messages
/// @param sidecars files beside it that may hold the quantization config; one that cannot be read
///        is an error only if config.json has none, else a note
/// @throws Error kFormat if the text is not valid JSON or a key is missing, has another type than
///         expected or an impossible value (the message names the key)
/// @throws Error kUnsupported if no family serves the model_type
MoeModelConfig read_moe_config(const std::string& text, const std::string& source,
                               const std::vector<QuantSidecar>& sidecars = {});

}  // namespace gantry
