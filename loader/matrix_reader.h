#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint.h"
#include "loader/moe_config.h"
#include "loader/tensor_geometry.h"
#include "loader/tensor_map.h"

namespace gantry GANTRY_API {

/// Reads single matrices of MoE layers as f32, whatever the checkpoint's spelling, orientation and
/// quantization: what tools compute on. Ranks, slots and panels do not appear; a layer that runs is
/// loaded by WeightLoader.
///
/// Checkpoint, config and map must outlive the reader, and the map must have no findings. Any
/// number of threads may read at once; a call holds the raw tensors of its matrix besides the
/// result.
class MatrixReader {
 public:
  MatrixReader(const Checkpoint& checkpoint, const MoeModelConfig& config, const TensorMap& tensors)
      : checkpoint_(&checkpoint), config_(&config), tensors_(&tensors) {}

  /// W[out, in], row-major. Quantized matrices are dequantized by the formula of their format, and
  /// a multiplier of their inputs (pre_quant_scale) is taken into the columns.
  /// @param expert logical id, or -1 for a shared part
  /// @param part   kW1, kW3, kW2, or for expert -1 kSharedW1, kSharedW3, kSharedW2
  /// @throws Error kInvalidArgument if the layer has no such matrix
  /// @throws Error kFormat, kUnsupported naming the tensor; kIo
  [[nodiscard]] std::vector<float> read(int layer, int expert, Part part) const;

  /// The bias of the same [out], or empty if there is none.
  [[nodiscard]] std::vector<float> read_bias(int layer, int expert, Part part) const;

  /// A tensor that is not an expert's (router, norm ...), [out, in] as the field has it, in f32.
  /// Empty if the layer has none.
  /// @throws Error kFormat if its elements are not plain floats
  [[nodiscard]] std::vector<float> read_single(int layer, Part part, TensorKind kind) const;

  /// The name of the weight's tensor (any of them where it is quantized); empty: no such matrix.
  [[nodiscard]] std::string name(int layer, int expert, Part part) const;

 private:
  [[nodiscard]] std::vector<float> read_plain(const MoeLayerSpec& spec, const TensorSource& source,
                                              TensorKind kind, int expert, Part part) const;
  [[nodiscard]] std::vector<float> read_encoded(const MoeLayerSpec& spec, int expert,
                                                Part part) const;

  const Checkpoint* checkpoint_;
  const MoeModelConfig* config_;
  const TensorMap* tensors_;
};

}  // namespace gantry
