#pragma once

// The scales of bitsandbytes' 4-bit matrices. Internal.

#include <cstdint>
#include <vector>

#include "loader/encodings/encoded_matrix.h"

namespace gantry {

/// Blocks run over the flattened matrix; value i is scaled by values[i / block].
struct BnbScales {
  std::vector<float> values;
  int64_t block = 0;
};

/// The size that a 4-bit matrix' quant_state declares: its codes are one column of bytes.
/// @throws Error kFormat if there is no quant_state, or it does not say [out, in]
MatrixSize declared_bnb_size(const EncodedMatrix& matrix);

/// Reads weight.absmax: f32, or with double quantization u8 codes of
///   absmax[b] = nested_quant_map[code[b]] * nested_absmax[b / nested_blocksize] + nested_offset
/// computed in f32 as bitsandbytes does. Block sizes, offset and shape are in the quant_state, a u8
/// tensor that holds JSON; without double quantization it may be missing, and the number of scales
/// gives the block.
/// @throws Error kFormat if quant_state and tensors contradict each other; kUnsupported for blocks
///         that cross rows
BnbScales read_bnb_scales(const EncodedMatrix& matrix);

}  // namespace gantry
