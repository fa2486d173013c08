#pragma once

// The linear layers of a checkpoint beside its routed experts: attention, shared experts, routers.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/moe_config.h"
#include "loader/tensor_geometry.h"
#include "loader/tensor_map.h"

namespace gantry::cli {

/// The tensors of one module that have a part in its weight: a plain matrix, or a quantized one.
struct LinearModule {
  std::string name;                                        ///< without ".weight" and the like
  std::map<std::string, const CheckpointTensor*> tensors;  ///< by suffix
  const QuantScheme* scheme = nullptr;                     ///< null: plain

  [[nodiscard]] int64_t bytes() const noexcept;
};

/// What a checkpoint holds beside the matrices of routed experts.
struct OtherTensors {
  std::vector<LinearModule> linear;  ///< matrices [out, in] named "X.weight", and quantized ones
  std::vector<const CheckpointTensor*> rest;  ///< biases, norms, embeddings, parameters
};

/// Whether a matrix of this name is a table of embeddings, not a linear layer.
bool is_embedding(std::string_view name);

/// @throws Error kUnsupported naming a quantized module whose scheme the config does not give
OtherTensors find_other_tensors(const Checkpoint& checkpoint, const MoeModelConfig& config,
                                const TensorMap& tensors);

/// The size of a module's matrix.
/// @throws Error kFormat if its tensors do not say it
MatrixSize linear_size(const Checkpoint& checkpoint, const LinearModule& module);

/// W[out, in] in f32, dequantized where it has to be.
/// @throws Error kFormat, kUnsupported naming the tensor; kIo
std::vector<float> read_linear(const Checkpoint& checkpoint, const LinearModule& module);

}  // namespace gantry::cli
