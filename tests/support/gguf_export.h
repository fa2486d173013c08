#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/moe_model.h"
#include "tests/support/gguf_builder.h"

namespace gantry::test {

/// How the rows of a tensor are written.
struct GgufEncoding {
  uint32_t type = 0;                                                  ///< f32
  std::function<std::string(const std::vector<float>&)> encode = {};  ///< null: f32
};

/// bf16, rounded.
GgufEncoding bf16_encoding();
/// q8_0 by ggml's rule: d = max|w| / 127 in f16, q = round(w / d). Rows of whole 32 elements.
GgufEncoding q8_0_encoding();
/// f32, but of the values that q8_0 keeps.
GgufEncoding f32_of_q8_0_encoding();

/// Adds the tensors of a model's MoE layers as llama.cpp's converter names and arranges them:
/// experts stacked, gate and up apart.
/// @param encoding_of by GGUF name; empty: f32
void export_gguf(const MoeModel& model,
                 const std::function<GgufEncoding(const std::string& name)>& encoding_of,
                 GgufBuilder& builder);

}  // namespace gantry::test
