// One code a byte (FP8, INT8, MXFP8), and FP4 with two codes a byte.

#include <string>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
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

const EncodedTensor& scale_of(const EncodedMatrix& matrix) {
  const EncodedTensor* inverse = matrix.find("weight_scale_inv");  // a multiplier all the same
  return inverse != nullptr ? *inverse : matrix.require("weight_scale");
}

uint8_t byte_at(const EncodedTensor& tensor, int64_t index) {
  return static_cast<uint8_t>(tensor.data[index]);
}

float single_float(const EncodedTensor& tensor) {
  GANTRY_CHECK(tensor.num_elements() == 1 && is_plain_float(tensor.dtype), ErrorCode::kFormat,
               "{}: expected one float, found {} {}", tensor.name, shape_text(tensor.shape),
               to_string(tensor.dtype));
  return load_as_f32(tensor.data, tensor.dtype, 0);
}

// FP4 codes of W[out, in]: u8 [out, in / 2], or [out, in / 32, 16] (gpt-oss); the low nibble is the
// even input.
class Fp4Codes {
 public:
  explicit Fp4Codes(const EncodedMatrix& matrix) : size_(matrix.size) {
    for (const std::string_view suffix : {"weight_packed", "weight", "blocks"}) {
      tensor_ = matrix.find(suffix);
      if (tensor_ != nullptr) break;
    }
    GANTRY_CHECK(
        tensor_ != nullptr && size_.in % 2 == 0, ErrorCode::kFormat,
        "FP4 codes: expected weight, weight_packed or blocks and an even number of inputs");
    if (tensor_->shape.size() == 3) {
      require_tensor(*tensor_, DType::kU8, {size_.out, size_.in / 32, 16});
    } else {
      require_tensor(*tensor_, DType::kU8, {size_.out, size_.in / 2});
    }
  }
  [[nodiscard]] float operator()(int64_t index) const {
    const uint8_t byte = byte_at(*tensor_, index / 2);
    return e2m1_to_f32(index % 2 == 0 ? byte & 0xfu : byte >> 4);
  }

 private:
  MatrixSize size_;
  const EncodedTensor* tensor_ = nullptr;
};

}  // namespace

DecodedMatrix decode_fp8(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, weight.dtype, {matrix.size.out, matrix.size.in});
  const ScaleValues scales = read_scales(scale_of(matrix), matrix.size, scheme);
  const bool e5m2 = weight.dtype == DType::kF8E5M2;
  return decode_each(
      matrix.size,
      [&](int64_t i) {
        return e5m2 ? e5m2_to_f32(byte_at(weight, i)) : e4m3_to_f32(byte_at(weight, i));
      },
      [&](int64_t o, int64_t i) { return scales.at(o, i); });
}

DecodedMatrix decode_mxfp8(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, DType::kF8E4M3, {matrix.size.out, matrix.size.in});
  const ScaleValues scales = read_group_scales(matrix.require("weight_scale"), matrix.size, 32);
  return decode_each(
      matrix.size, [&](int64_t i) { return e4m3_to_f32(byte_at(weight, i)); },
      [&](int64_t o, int64_t i) { return scales.at(o, i); });
}

DecodedMatrix decode_int8(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, DType::kI8, {matrix.size.out, matrix.size.in});
  int32_t zero = 0;
  if (const EncodedTensor* zeros = matrix.find("weight_zero_point")) {
    GANTRY_CHECK(zeros->dtype == DType::kI8 && zeros->num_elements() == 1, ErrorCode::kUnsupported,
                 "{}: expected one i8, found {} {}", zeros->name, shape_text(zeros->shape),
                 to_string(zeros->dtype));
    zero = sign_extend(byte_at(*zeros, 0), 8);
  }
  const ScaleValues scales = read_scales(matrix.require("weight_scale"), matrix.size, scheme);
  return decode_each(
      matrix.size,
      [&](int64_t i) { return static_cast<float>(static_cast<int8_t>(byte_at(weight, i)) - zero); },
      [&](int64_t o, int64_t i) { return scales.at(o, i); });
}

DecodedMatrix decode_mxfp4(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const EncodedTensor* scale = matrix.find("scales");
  const ScaleValues scales = read_group_scales(
      scale != nullptr ? *scale : matrix.require("weight_scale"), matrix.size, 32);
  return decode_each(matrix.size, Fp4Codes(matrix),
                     [&](int64_t o, int64_t i) { return scales.at(o, i); });
}

// Two levels: e4m3 a group of 16, and one f32 that ModelOpt multiplies by and compressed-tensors
// divides by. Code times group scale has 6 significant bits: one rounding in all.
DecodedMatrix decode_nvfp4(const QuantScheme& /*scheme*/, const EncodedMatrix& matrix) {
  const EncodedTensor& scale = matrix.require("weight_scale");
  GANTRY_CHECK(scale.dtype == DType::kF8E4M3, ErrorCode::kFormat, "{}: expected f8_e4m3, found {}",
               scale.name, to_string(scale.dtype));
  const ScaleValues scales = read_group_scales(scale, matrix.size, 16);
  const EncodedTensor* divisor = matrix.find("weight_global_scale");
  const float global =
      single_float(divisor != nullptr ? *divisor : matrix.require("weight_scale_2"));
  const Fp4Codes codes(matrix);
  DecodedMatrix decoded =
      decode_each(matrix.size, codes, [&](int64_t o, int64_t i) { return scales.at(o, i); });
  for (float& value : decoded)
    value = divisor != nullptr ? value / global : value * global;
  return decoded;
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
        const uint8_t byte = byte_at(weight, i / 2);
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
      matrix.size,
      [&](int64_t i) { return static_cast<float>(sign_extend(byte_at(weight, i), 8)); },
      [&](int64_t o, int64_t /*i*/) { return scales[static_cast<size_t>(o)]; });
  for (float& value : decoded)
    value /= 127.0F;
  return decoded;
}

}  // namespace gantry
