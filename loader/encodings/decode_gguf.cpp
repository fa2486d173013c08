// Tensors of ggml's block types: the tensor itself says which, and holds everything.

#include "kernels/base/check.h"
#include "kernels/quant/element_formats.h"
#include "loader/encodings/decoders.h"
#include "loader/encodings/ggml_types.h"

namespace gantry {

namespace {

// @throws Error if the tensor is not [out, in] in whole blocks of a type that can be read
const GgmlType& checked_type(const EncodedMatrix& matrix) {
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
  return *type;
}

// Kernels fold scales of FP4 into exponents with room for 2^100. Unlike elsewhere 255 is a number.
constexpr float kLargestExponent = 227.0F;

}  // namespace

WeightFormat gguf_format(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const GgmlType* type = find_ggml_type(matrix.require("weight").block_type);
  return type == nullptr || type->split == nullptr ? WeightFormat{} : type->format;
}

CodedMatrix code_gguf(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const GgmlType& type = checked_type(matrix);
  const WeightFormat& format = type.format;
  CodedMatrix coded{.format = format, .size = matrix.size};
  const auto [out, in] = matrix.size;
  coded.own_codes(coded.nibbles() ? in / 2 : in);
  const bool levels = format.super_group > 0;
  const int64_t groups = type.block_elements / format.group;
  const std::byte* block = matrix.require("weight").data;
  GgmlBlock parts{};
  for (int64_t o = 0; o < out; ++o) {
    uint8_t* row = coded.codes.data() + o * coded.row_bytes();
    for (int64_t i = 0; i < in; i += type.block_elements, block += type.block_bytes) {
      type.split(block, parts);
      for (int64_t e = 0; e < type.block_elements; e += 2) {
        if (coded.nibbles()) {
          row[(i + e) / 2] = static_cast<uint8_t>((parts.codes[e] & 15) | parts.codes[e + 1] << 4);
        } else {
          row[i + e] = parts.codes[e];
          row[i + e + 1] = parts.codes[e + 1];
        }
      }
      if (levels) {
        coded.super_scales.push_back(parts.scale);
        if (format.minimums) coded.super_minimums.push_back(parts.minimum);
        coded.scales.insert(coded.scales.end(), parts.scales, parts.scales + groups);
        if (format.minimums) {
          coded.minimums.insert(coded.minimums.end(), parts.minimums, parts.minimums + groups);
        }
        continue;
      }
      const bool exponent = format.scale == ScaleType::kE8M0;
      GANTRY_CHECK(!exponent || parts.scale <= kLargestExponent, ErrorCode::kUnsupported,
                   "{}: row {}, input {}: expected a scale of at most 2^100, found 2^{}",
                   matrix.require("weight").name, o, i, parts.scale - 127.0F);
      coded.scales.push_back(exponent ? e8m0_to_f32(static_cast<uint8_t>(parts.scale))
                                      : parts.scale);
      if (format.minimums) coded.minimums.push_back(parts.minimum);
    }
  }
  return coded;
}

DecodedMatrix decode_gguf(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const GgmlType& type = checked_type(matrix);
  const MatrixSize& size = matrix.size;
  DecodedMatrix decoded(static_cast<size_t>(size.out * size.in));
  decode_ggml_blocks(type, matrix.require("weight").data,
                     size.out * (size.in / type.block_elements), decoded.data());
  return decoded;
}

}  // namespace gantry
