#pragma once

// The decoders that the table of encodings lists. Internal.

#include <vector>

#include "loader/encodings/coded_matrix.h"
#include "loader/encodings/encoded_matrix.h"

namespace gantry {

using DecodedMatrix = std::vector<float>;  // [out, in]

CodedMatrix code_gptq(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_awq(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_packed_int(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_row_pairs_int4(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_fp8(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_mxfp8(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_int8(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_mxfp4(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_nvfp4(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_bnb_4bit(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_bnb_int8(const QuantScheme& scheme, const EncodedMatrix& matrix);
CodedMatrix code_gguf(const QuantScheme& scheme, const EncodedMatrix& matrix);

// The formats of what these give; they look at dtypes only.
WeightFormat gptq_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat awq_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat packed_int_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat row_pairs_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat fp8_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat mxfp8_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat int8_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat mxfp4_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat nvfp4_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat bnb_4bit_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat bnb_int8_format(const QuantScheme& scheme, const EncodedMatrix& matrix);
WeightFormat gguf_format(const QuantScheme& scheme, const EncodedMatrix& matrix);

// In the words of the format itself: other code books, other roundings, all of ggml's types.
DecodedMatrix decode_bnb_4bit(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_bnb_int8(const QuantScheme& scheme, const EncodedMatrix& matrix);
DecodedMatrix decode_gguf(const QuantScheme& scheme, const EncodedMatrix& matrix);

}  // namespace gantry
