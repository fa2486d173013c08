#pragma once

// How the tensors of a quantized matrix are cut for tensor parallelism. Internal.

#include <cstddef>
#include <functional>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "loader/encodings/quant_scheme.h"
#include "loader/relayout_geometry.h"
#include "loader/tensor_geometry.h"
#include "parallel/parallel_config.h"

namespace gantry {

/// The part of a matrix W[out, in] that a rank keeps.
struct MatrixCut {
  MatrixSize size;  ///< of the whole matrix
  Slice out;
  Slice in;
};

/// A tensor of a quantized matrix, apart from how its file stores it.
struct EncodedPart {
  std::string_view name;  ///< in the checkpoint, for messages
  std::string_view suffix;
  DType dtype = DType::kU8;
  EncodedShape shape;     ///< one matrix' own
  bool in_first = false;  ///< GPTQ and AWQ: the first axis follows the inputs
};

/// What a rank keeps of such a tensor.
struct EncodedCut {
  std::vector<int64_t> dims;  ///< like EncodedShape::dims
  int64_t first_row = 0;      ///< of the whole's rows
  int64_t first_col = 0;      ///< of the whole's cols
  /// The tensor's bytes where they are no piece of the source: sizes, groups counted anew.
  std::vector<std::byte> literal;
};

/// Cuts codes, scales, zero points and group indices along the matrix. A scale goes to every rank
/// that has some of its weights, as long as each rank's weights keep their groups: these are
/// counted from the rank's first row and column on.
///
/// @param read the tensor's bytes; called for sizes and group indices only
/// @throws Error kUnsupported naming the tensor where the border falls into a word of packed codes,
///         or moves weights into other groups or blocks, or where activation order spreads a rank's
///         inputs over all groups; and for tensors whose axes are not known
EncodedCut cut_encoded(const EncodedPart& part, const MatrixCut& cut, const QuantScheme& scheme,
                       const std::function<std::vector<std::byte>()>& read);

}  // namespace gantry
