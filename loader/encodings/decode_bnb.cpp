// bitsandbytes: 4 bits with a code book, and LLM.int8().

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/quant/code_books.h"
#include "kernels/quant/element_formats.h"
#include "loader/encodings/bnb_scales.h"
#include "loader/encodings/decoders.h"
#include "loader/encodings/scale_grid.h"

namespace gantry {
namespace {

// W[o, i] = value(code at o * in + i) * scale(o, i)
template <typename Value, typename Scale>
DecodedMatrix decode_each(const MatrixSize& size, Value value, Scale scale) {
  DecodedMatrix decoded(static_cast<size_t>(size.out * size.in));
  for (int64_t o = 0; o < size.out; ++o) {
    for (int64_t i = 0; i < size.in; ++i)
      decoded[static_cast<size_t>(o * size.in + i)] = value(o * size.in + i) * scale(o, i);
  }
  return decoded;
}

}  // namespace

// The name of the quant_state says which code book it is; without one only the decoder knows.
WeightFormat bnb_4bit_format(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const bool nf4 = matrix.find("weight.quant_state.bitsandbytes__nf4") != nullptr;
  const bool fp4 = matrix.find("weight.quant_state.bitsandbytes__fp4") != nullptr;
  const int64_t count = matrix.size.out * matrix.size.in;
  const int64_t blocks = matrix.require("weight.absmax").num_elements();
  if (nf4 == fp4 || blocks == 0 || count % blocks != 0) return {};
  return {.element = nf4 ? WeightElement::kNF4 : WeightElement::kFP4,
          .scale = ScaleType::kF32,
          .group = count / blocks};
}

CodedMatrix code_bnb_4bit(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = bnb_4bit_format(scheme, matrix), .size = matrix.size};
  const auto [out, in] = matrix.size;
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, DType::kU8, {(out * in + 1) / 2, 1});
  const EncodedTensor& map = matrix.require("weight.quant_map");
  require_tensor(map, DType::kF32, {16});
  const std::vector<float> book = scale_values(map);
  const auto& expected = coded.format.element == WeightElement::kNF4 ? kNF4Values : kFP4Values;
  for (size_t c = 0; c < book.size(); ++c) {
    GANTRY_CHECK(book[c] == expected[c], ErrorCode::kUnsupported,
                 "{}: element {}: expected {}'s {}, found {}", map.name, c,
                 coded.format.element == WeightElement::kNF4 ? "NF4" : "FP4", expected[c], book[c]);
  }
  const auto [scales, block] = read_bnb_scales(matrix);  // rows are whole numbers of blocks
  GANTRY_CHECK(block == coded.format.group && in % 2 == 0, ErrorCode::kFormat,
               "{}: blocks of {} in rows of {}", weight.name, block, in);
  coded.scales = scales;
  coded.own_codes(in / 2);
  for (size_t b = 0; b < coded.codes.size(); ++b) {  // here the even input is the high nibble
    const uint8_t byte = weight.byte(static_cast<int64_t>(b));
    coded.codes[b] = static_cast<uint8_t>(byte << 4 | byte >> 4);
  }
  return coded;
}

// Blocks of 64 run over the flattened matrix, the high nibble first; the code book is in the file.
DecodedMatrix decode_bnb_4bit(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const EncodedTensor& weight = matrix.require("weight");
  const int64_t count = matrix.size.out * matrix.size.in;
  require_tensor(weight, DType::kU8, {(count + 1) / 2, 1});
  const EncodedTensor& map = matrix.require("weight.quant_map");
  require_tensor(map, DType::kF32, {16});
  const auto [scales, block] = read_bnb_scales(matrix);
  const std::vector<float> book = scale_values(map);
  return decode_each(
      matrix.size,
      [&](int64_t i) {
        const uint8_t byte = weight.byte(i / 2);
        return book[i % 2 == 0 ? byte >> 4 : byte & 0xfu];
      },
      [&, &values = scales, size = block](int64_t o, int64_t i) {
        return values[static_cast<size_t>((o * matrix.size.in + i) / size)];
      });
}

// LLM.int8(): W = q * SCB[o] / 127.
DecodedMatrix decode_bnb_int8(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, DType::kI8, {matrix.size.out, matrix.size.in});
  const EncodedTensor& scb = matrix.require("SCB");
  require_tensor(scb, DType::kF32, {matrix.size.out});
  const std::vector<float> scales = scale_values(scb);
  DecodedMatrix decoded = decode_each(
      matrix.size, [&](int64_t i) { return static_cast<float>(sign_extend(weight.byte(i), 8)); },
      [&](int64_t o, int64_t /*i*/) { return scales[static_cast<size_t>(o)]; });
  for (float& value : decoded)
    value /= 127.0F;
  return decoded;
}

WeightFormat bnb_int8_format(const QuantScheme& /*scheme*/, const EncodedMatrix& /*matrix*/) {
  return {.element = WeightElement::kInt8, .output_scale = true};
}

// With SCB / 127 rounded once.
CodedMatrix code_bnb_int8(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = bnb_int8_format(scheme, matrix), .size = matrix.size};
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, DType::kI8, {matrix.size.out, matrix.size.in});
  const EncodedTensor& scb = matrix.require("SCB");
  require_tensor(scb, DType::kF32, {matrix.size.out});
  coded.file_codes = reinterpret_cast<const uint8_t*>(weight.data);
  coded.output_scales = scale_values(scb);
  for (float& scale : coded.output_scales)
    scale /= 127.0F;
  return coded;
}

}  // namespace gantry
