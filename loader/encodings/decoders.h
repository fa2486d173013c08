#pragma once

// The decoders that the table of encodings lists. Internal.

#include <vector>

#include "loader/encodings/encoded_matrix.h"

namespace gantry {

using DecodedMatrix = std::vector<float>;  // [out, in]

DecodedMatrix decode_gptq(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_awq(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_packed_int(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_row_pairs_int4(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_fp8(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_mxfp8(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_int8(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_mxfp4(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_nvfp4(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_bnb_4bit(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_bnb_int8(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_gguf(const QuantScheme& scheme, const EncodedMatrix& matrix);

}  // namespace gantry
