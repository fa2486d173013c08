// Tensors of ggml's block types: the tensor itself says which, and holds everything.

#include "kernels/base/check.h"
#include "loader/encodings/decoders.h"
#include "loader/encodings/ggml_types.h"

namespace gantry {

DecodedMatrix decode_gguf(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const EncodedTensor& weight = matrix.require("weight");
  const MatrixSize& size = matrix.size;
  const GgmlType* type = find_ggml_type(weight.block_type);
  GANTRY_CHECK(type != nullptr && type->decode != nullptr, ErrorCode::kUnsupported,
               "{}: ggml type {} cannot be read", weight.name, weight.block_type);
  GANTRY_CHECK(weight.shape == (std::vector<int64_t>{size.out, size.in}), ErrorCode::kFormat,
               "{}: expected [{}, {}] {}, found {}", weight.name, size.out, size.in, type->name,
               shape_text(weight.shape));
  GANTRY_CHECK(size.in % type->block_elements == 0, ErrorCode::kFormat,
               "{}: expected rows of whole {} blocks of {} elements, found rows of {}", weight.name,
               type->name, type->block_elements, size.in);
  DecodedMatrix decoded(static_cast<size_t>(size.out * size.in));
  decode_ggml_blocks(*type, weight.data, size.out * (size.in / type->block_elements),
                     decoded.data());
  return decoded;
}

}  // namespace gantry
