// One code a byte (FP8, INT8, MXFP8), and FP4 with two codes a byte.

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"
#include "loader/encodings/decoders.h"
#include "loader/encodings/scale_grid.h"

namespace gantry {
namespace {

const EncodedTensor& scale_of(const EncodedMatrix& matrix) {
  const EncodedTensor* inverse = matrix.find("weight_scale_inv");  // a multiplier all the same
  return inverse != nullptr ? *inverse : matrix.require("weight_scale");
}

float single_float(const EncodedTensor& tensor) {
  GANTRY_CHECK(tensor.num_elements() == 1 && is_plain_float(tensor.dtype), ErrorCode::kFormat,
               "{}: expected one float, found {} {}", tensor.name, shape_text(tensor.shape),
               to_string(tensor.dtype));
  return load_as_f32(tensor.data, tensor.dtype, 0);
}

void use_codes(const EncodedTensor& weight, DType dtype, CodedMatrix& coded) {
  require_tensor(weight, dtype, {coded.size.out, coded.size.in});
  coded.file_codes = reinterpret_cast<const uint8_t*>(weight.data);
}

// FP4 codes: u8 [out, in / 2], or [out, in / 32, 16] (gpt-oss); the low nibble is the even input.
void use_fp4_codes(const EncodedMatrix& matrix, CodedMatrix& coded) {
  const auto [out, in] = matrix.size;
  const EncodedTensor* tensor = nullptr;
  for (const std::string_view suffix : {"weight_packed", "weight", "blocks"}) {
    tensor = matrix.find(suffix);
    if (tensor != nullptr) break;
  }
  GANTRY_CHECK(tensor != nullptr && in % 2 == 0, ErrorCode::kFormat,
               "FP4 codes: expected weight, weight_packed or blocks and an even number of inputs");
  if (tensor->shape.size() == 3) {
    GANTRY_CHECK(in % 32 == 0, ErrorCode::kFormat, "{}: blocks of 32 for {} inputs", tensor->name,
                 in);
    require_tensor(*tensor, DType::kU8, {out, in / 32, 16});
  } else {
    require_tensor(*tensor, DType::kU8, {out, in / 2});
  }
  coded.file_codes = reinterpret_cast<const uint8_t*>(tensor->data);
}

// Kernels fold scales into exponents with room for 2^100; no weight is that large. NaN is found
// elsewhere.
void check_fp4_exponents(const EncodedTensor& scales) {
  constexpr uint8_t kLargest = 227;  // 2^100
  constexpr uint8_t kNan = 255;
  const auto is_too_large = [](uint8_t code) {
    return static_cast<uint8_t>(code - kLargest - 1) < kNan - kLargest - 1;
  };
  const auto* codes = reinterpret_cast<const uint8_t*>(scales.data);
  const int64_t count = scales.num_elements();
  uint8_t too_large = 0;  // a sum over all: compilers make vectors of it
  for (int64_t i = 0; i < count; ++i)
    too_large |= static_cast<uint8_t>(is_too_large(codes[i]));
  if (too_large == 0) return;
  const int64_t first = std::find_if(codes, codes + count, is_too_large) - codes;
  fail(ErrorCode::kUnsupported, "{}: element {}: expected scales of FP4 up to 2^100, found 2^{}",
       scales.name, first, codes[first] - 127);
}

}  // namespace

WeightFormat fp8_format(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const bool e5m2 = matrix.require("weight").dtype == DType::kF8E5M2;
  WeightFormat format{.element = e5m2 ? WeightElement::kE5M2 : WeightElement::kE4M3};
  set_grid(format, scheme, matrix.size, scale_of(matrix));
  return format;
}

CodedMatrix code_fp8(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = fp8_format(scheme, matrix), .size = matrix.size};
  const EncodedTensor& weight = matrix.require("weight");
  use_codes(weight, weight.dtype, coded);
  set_scales(coded, scale_of(matrix), scheme);
  return coded;
}

WeightFormat mxfp8_format(const QuantScheme& /*scheme*/, const EncodedMatrix& /*matrix*/) {
  return {.element = WeightElement::kE4M3, .scale = ScaleType::kE8M0, .group = 32};
}

CodedMatrix code_mxfp8(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = mxfp8_format(scheme, matrix), .size = matrix.size};
  use_codes(matrix.require("weight"), DType::kF8E4M3, coded);
  set_file_scales(coded, matrix.require("weight_scale"));
  return coded;
}

// Codes of up to 4 bits, a byte each in the file (compressed-tensors' int-quantized W4A8), as
// kernels have them: half the memory.
void use_small_codes(const EncodedTensor& weight, int bits, CodedMatrix& coded) {
  const auto [out, in] = coded.size;
  require_tensor(weight, DType::kI8, {out, in});
  coded.own_codes((in + 1) / 2);
  const int limit = 1 << (bits - 1);
  for (int64_t i = 0; i < out * in; ++i) {
    const auto code = static_cast<int8_t>(weight.byte(i));
    GANTRY_CHECK(code >= -limit && code < limit, ErrorCode::kFormat,
                 "{}: element {}: expected a code of {} bits, found {}", weight.name, i, bits,
                 code);
    coded.codes[static_cast<size_t>(i / in * coded.padded_row_bytes + i % in / 2)] |=
        static_cast<uint8_t>((static_cast<unsigned>(code) & 0xfu) << (i % in % 2 * 4));
  }
}

WeightFormat int8_format(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const bool nibbles = scheme.bits > 0 && scheme.bits <= 4;
  WeightFormat format{.element = nibbles ? WeightElement::kInt4 : WeightElement::kInt8};
  set_grid(format, scheme, matrix.size, matrix.require("weight_scale"));
  return format;
}

CodedMatrix code_int8(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = int8_format(scheme, matrix), .size = matrix.size};
  if (const EncodedTensor* zeros = matrix.find("weight_zero_point")) {
    GANTRY_CHECK(zeros->dtype == DType::kI8 && zeros->num_elements() == 1 && zeros->byte(0) == 0,
                 ErrorCode::kUnsupported, "{}: expected one i8 of 0, found {} {}", zeros->name,
                 shape_text(zeros->shape), to_string(zeros->dtype));
  }
  if (coded.nibbles()) {
    use_small_codes(matrix.require("weight"), scheme.bits, coded);
  } else {
    use_codes(matrix.require("weight"), DType::kI8, coded);
  }
  set_scales(coded, matrix.require("weight_scale"), scheme);
  return coded;
}

WeightFormat mxfp4_format(const QuantScheme& /*scheme*/, const EncodedMatrix& /*matrix*/) {
  return {.element = WeightElement::kE2M1, .scale = ScaleType::kE8M0, .group = 32};
}

CodedMatrix code_mxfp4(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = mxfp4_format(scheme, matrix), .size = matrix.size};
  use_fp4_codes(matrix, coded);
  const EncodedTensor* scales = matrix.find("scales");
  if (scales == nullptr) scales = &matrix.require("weight_scale");
  set_file_scales(coded, *scales);
  check_fp4_exponents(*scales);
  return coded;
}

WeightFormat nvfp4_format(const QuantScheme& /*scheme*/, const EncodedMatrix& /*matrix*/) {
  return {.element = WeightElement::kE2M1,
          .scale = ScaleType::kE4M3,
          .group = 16,
          .output_scale = true};
}

// Two levels: e4m3 a group of 16, and one f32 that ModelOpt multiplies by and compressed-tensors
// divides by. Code times group scale has 6 significant bits: one rounding in all.
CodedMatrix code_nvfp4(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = nvfp4_format(scheme, matrix), .size = matrix.size};
  const EncodedTensor& scale = matrix.require("weight_scale");
  GANTRY_CHECK(scale.dtype == DType::kF8E4M3, ErrorCode::kFormat, "{}: expected f8_e4m3, found {}",
               scale.name, to_string(scale.dtype));
  use_fp4_codes(matrix, coded);
  set_file_scales(coded, scale);
  const EncodedTensor* divisor = matrix.find("weight_global_scale");
  const float global =
      single_float(divisor != nullptr ? *divisor : matrix.require("weight_scale_2"));
  if (divisor != nullptr) coded.output_divisor = global;
  coded.output_scales.assign(static_cast<size_t>(matrix.size.out),
                             divisor != nullptr ? 1.0F / global : global);
  return coded;
}

}  // namespace gantry
