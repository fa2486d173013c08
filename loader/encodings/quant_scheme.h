#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/base/export.h"
#include "loader/encodings/activation_scheme.h"

namespace gantry GANTRY_API {

/// What one scale covers.
enum class ScaleGrid : uint8_t {
  kTensor,   ///< the whole matrix
  kChannel,  ///< one output row
  kBlock,    ///< block_rows x block_cols elements
  kGroup,    ///< group_size consecutive inputs of one output row
};

/// How integers share 32-bit words, for the tensors that do not say so themselves.
enum class IntPacking : uint8_t {
  kGptq,  ///< qweight [in * bits / 32, out], least significant first along in
  kAwq,   ///< qweight [in, out / 8], interleaved along out
};

/// How the quantized matrices of a checkpoint are to be read, according to its config. Whether a
/// matrix is quantized, and by which encoding, its tensors say; this is what they leave open.
struct QuantScheme {
  std::string method;  ///< quant_method, with the exporter's own algorithm: "modelopt NVFP4"
  IntPacking int_packing = IntPacking::kGptq;
  int bits = 0;           ///< of an integer element; 0: the encoding has one size only
  bool symmetric = true;  ///< integers: the zero point is 2^(bits - 1)
  /// GPTQ's first format: stored zero points are one less than what they mean.
  bool zero_minus_one = true;
  /// Integers: inputs are in groups by g_idx, not by position.
  bool act_order = false;
  ScaleGrid grid = ScaleGrid::kTensor;
  int64_t block_rows = 0;
  int64_t block_cols = 0;
  int64_t group_size = 0;  ///< kGroup; 0: one group spans the row
  ActivationScheme activations;
};

/// Whether both schemes give the same weights for the same tensors.
bool reads_weights_alike(const QuantScheme& a, const QuantScheme& b) noexcept;

/// "gptq, 4 bits, groups of 128, asymmetric": what tells schemes apart, for people.
std::string describe(const QuantScheme& scheme);

/// Reads the quantization_config of a config.json's text as one scheme for the whole model; where
/// modules differ, QuantConfig knows (quant_config.h).
/// @return nothing if there is none
/// @throws Error kFormat for values of a wrong type or without sense
/// @throws Error kUnsupported for methods that are not known, and for several config groups
std::optional<QuantScheme> read_quant_scheme(const std::string& config_text,
                                             const std::string& source);

}  // namespace gantry
