#include "loader/encodings/encoded_matrix.h"

#include <array>

#include "kernels/base/check.h"
#include "loader/encodings/decoders.h"

namespace gantry {
namespace {

bool has(const EncodedMatrix& m, std::string_view suffix, DType dtype) {
  const EncodedTensor* tensor = m.find(suffix);
  return tensor != nullptr && tensor->dtype == dtype;
}

bool has_exponents(const EncodedMatrix& m, std::string_view suffix) {
  return has(m, suffix, DType::kU8) || has(m, suffix, DType::kF8E8M0);
}

bool has_fp8_scale(const EncodedMatrix& m) {
  return m.find("weight_scale") != nullptr || m.find("weight_scale_inv") != nullptr;
}

// MXFP8 and block FP8 with exponents for scales (ue8m0) differ in what a scale covers.
bool is_mxfp8(const QuantScheme& s, const EncodedMatrix& m) {
  return has(m, "weight", DType::kF8E4M3) && s.grid == ScaleGrid::kGroup &&
         has_exponents(m, "weight_scale");
}

// A new encoding is one reader and one row.
constexpr std::array<Encoding, 12> kEncodings = {{
    {"gptq",
     [](const QuantScheme& s, const EncodedMatrix& m) {
       return has(m, "qweight", DType::kI32) && s.int_packing == IntPacking::kGptq;
     },
     gptq_format, code_gptq},
    {"awq",
     [](const QuantScheme& s, const EncodedMatrix& m) {
       return has(m, "qweight", DType::kI32) && s.int_packing == IntPacking::kAwq;
     },
     awq_format, code_awq},
    {"pack-quantized",
     [](const QuantScheme&, const EncodedMatrix& m) {
       return has(m, "weight_packed", DType::kI32);
     },
     packed_int_format, code_packed_int},
    {"int4 row pairs",
     [](const QuantScheme& s, const EncodedMatrix& m) {
       return has(m, "weight", DType::kU8) && m.find("weight_scale") != nullptr && s.bits == 4;
     },
     row_pairs_format, code_row_pairs_int4},
    {"fp8",
     [](const QuantScheme& s, const EncodedMatrix& m) {
       const bool e4m3 = has(m, "weight", DType::kF8E4M3) && !is_mxfp8(s, m);
       return (e4m3 || has(m, "weight", DType::kF8E5M2)) && has_fp8_scale(m);
     },
     fp8_format, code_fp8},
    {"mxfp8", [](const QuantScheme& s, const EncodedMatrix& m) { return is_mxfp8(s, m); },
     mxfp8_format, code_mxfp8},
    {"int8",
     [](const QuantScheme&, const EncodedMatrix& m) {
       return has(m, "weight", DType::kI8) && m.find("weight_scale") != nullptr;
     },
     int8_format, code_int8},
    {"mxfp4",
     [](const QuantScheme& s, const EncodedMatrix& m) {
       const bool split = (has(m, "weight", DType::kU8) || has(m, "weight_packed", DType::kU8)) &&
                          has_exponents(m, "weight_scale") && s.bits != 4;
       const bool packed = has(m, "weight_packed", DType::kU8) && has_exponents(m, "weight_scale");
       return split || packed || (has(m, "blocks", DType::kU8) && has_exponents(m, "scales"));
     },
     mxfp4_format, code_mxfp4},
    {"nvfp4",
     [](const QuantScheme&, const EncodedMatrix& m) {
       return has(m, "weight_scale", DType::kF8E4M3) &&
              ((has(m, "weight", DType::kU8) && m.find("weight_scale_2") != nullptr) ||
               (has(m, "weight_packed", DType::kU8) && m.find("weight_global_scale") != nullptr));
     },
     nvfp4_format, code_nvfp4},
    {"bitsandbytes 4 bits",
     [](const QuantScheme&, const EncodedMatrix& m) {
       return has(m, "weight", DType::kU8) && m.find("weight.absmax") != nullptr;
     },
     bnb_4bit_format, code_bnb_4bit, decode_bnb_4bit},
    {"bitsandbytes int8",
     [](const QuantScheme&, const EncodedMatrix& m) {
       return has(m, "weight", DType::kI8) && m.find("SCB") != nullptr;
     },
     bnb_int8_format, code_bnb_int8, decode_bnb_int8},
    {"gguf",
     [](const QuantScheme&, const EncodedMatrix& m) {
       const EncodedTensor* weight = m.find("weight");
       return weight != nullptr && !weight->block_type.empty();
     },
     gguf_format, code_gguf, decode_gguf},
}};

}  // namespace

int64_t EncodedTensor::num_elements() const noexcept {
  int64_t count = 1;
  for (const int64_t dim : shape)
    count *= dim;
  return count;
}

const EncodedTensor* EncodedMatrix::find(std::string_view suffix) const {
  const auto found = tensors.find(suffix);
  return found == tensors.end() ? nullptr : &found->second;
}

const EncodedTensor& EncodedMatrix::require(std::string_view suffix) const {
  const EncodedTensor* tensor = find(suffix);
  GANTRY_CHECK(tensor != nullptr, ErrorCode::kFormat, "{}: its {} is missing",
               tensors.empty() ? "a matrix" : tensors.begin()->second.name, suffix);
  return *tensor;
}

const Encoding& find_encoding(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const Encoding* found = nullptr;
  for (const Encoding& encoding : kEncodings) {
    if (!encoding.matches(scheme, matrix)) continue;
    GANTRY_CHECK(found == nullptr, ErrorCode::kInternal, "a matrix is both {} and {}", found->name,
                 encoding.name);
    found = &encoding;
  }
  if (found == nullptr) {
    std::string tensors;
    for (const auto& [suffix, tensor] : matrix.tensors) {
      tensors += fmt::format("{}{} {} {}", tensors.empty() ? "" : ", ", tensor.name,
                             shape_text(tensor.shape), to_string(tensor.dtype));
    }
    fail(ErrorCode::kUnsupported, "method '{}': no encoding consists of {}", scheme.method,
         tensors);
  }
  return *found;
}

std::optional<WeightFormat> coded_format(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const Encoding& encoding = find_encoding(scheme, matrix);
  const WeightFormat format = encoding.format(scheme, matrix);
  const bool fits = format.coded() && (!format.grouped() || format.group % 8 == 0);
  return fits ? std::optional(format) : std::nullopt;
}

std::vector<float> decode_matrix(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const Encoding& encoding = find_encoding(scheme, matrix);
  return encoding.decode != nullptr ? encoding.decode(scheme, matrix)
                                    : dequantize(encoding.code(scheme, matrix));
}

}  // namespace gantry
