// Integers of 2 to 8 bits: GPTQ, AWQ, compressed-tensors' pack-quantized, ModelOpt's row pairs.
// Packed words are little endian streams: element i of b bits is at bit i * b, and may straddle two
// words where b does not divide 32.

#include <array>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/quant/element_formats.h"
#include "loader/encodings/code_orders.h"
#include "loader/encodings/decoders.h"
#include "loader/encodings/scale_grid.h"

namespace gantry {
namespace {

// Words of one stream: word w is at data[begin + w * stride].
class BitStream {
 public:
  BitStream(const EncodedTensor& tensor, int64_t begin, int64_t stride, int bits)
      : data_(tensor.data), begin_(begin), stride_(stride), bits_(bits) {}

  [[nodiscard]] uint32_t at(int64_t element) const noexcept {
    const int64_t bit = element * bits_;
    const int64_t word = bit / 32;
    const int shift = static_cast<int>(bit % 32);
    uint64_t value = load(word);
    if (shift + bits_ > 32) value |= static_cast<uint64_t>(load(word + 1)) << 32;
    return static_cast<uint32_t>(value >> shift) & ((1u << bits_) - 1u);
  }

 private:
  [[nodiscard]] uint32_t load(int64_t word) const noexcept {
    uint32_t value = 0;
    std::memcpy(&value, data_ + (begin_ + word * stride_) * 4, 4);
    return value;
  }

  const std::byte* data_;
  int64_t begin_;
  int64_t stride_;
  int bits_;
};

int64_t words_of(int64_t elements, int bits) { return (elements * bits + 31) / 32; }

int64_t num_groups(const QuantScheme& scheme, const MatrixSize& size) {
  const int64_t group = scheme.group_size > 0 ? scheme.group_size : size.in;
  return (size.in + group - 1) / group;
}

void check_bits(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  GANTRY_CHECK(scheme.bits >= 2 && scheme.bits <= 8, ErrorCode::kFormat, "{}: integers of {} bits",
               matrix.tensors.begin()->second.name, scheme.bits);
}

// Kernels have integers of 4 and 8 bits: each kind of code is written as the next of the two, with
// 2^(bits - 1) taken off, which is also the zero point of symmetric matrices.
WeightFormat integer_format(const QuantScheme& scheme, const EncodedMatrix& matrix, bool zeros,
                            std::string_view scales) {
  const EncodedTensor& scale = matrix.require(scales);
  GANTRY_CHECK(scheme.grid != ScaleGrid::kBlock, ErrorCode::kUnsupported,
               "{}: packed integers with blocks of {} x {}", scale.name, scheme.block_rows,
               scheme.block_cols);
  WeightFormat format{.element = scheme.bits <= 4 ? WeightElement::kInt4 : WeightElement::kInt8};
  if (num_groups(scheme, matrix.size) == 1 && !zeros) {
    format.output_scale = true;
    return format;
  }
  constexpr int64_t kDepth = 32;  // one group for the row: a whole number of kernel steps
  format.group =
      scheme.group_size > 0 ? scheme.group_size : (matrix.size.in + kDepth - 1) / kDepth * kDepth;
  format.scale = scale_type_of(scale);
  format.zero_points = zeros;
  return format;
}

// A zero point as kernels count it.
int8_t centered_zero(int64_t zero, int bits, const EncodedTensor& tensor) {
  const int64_t centered = zero - (int64_t{1} << (bits - 1));
  GANTRY_CHECK(centered >= -128 && centered <= 127, ErrorCode::kUnsupported,
               "{}: a zero point of {} with {} bits", tensor.name, zero, bits);
  return static_cast<int8_t>(centered);
}

uint8_t centered_code(uint32_t code, int bits) {
  return static_cast<uint8_t>(code - (1u << (bits - 1)));
}

// Whether a word holds whole codes as kernels have them, but for the offset.
bool is_byte_order(int bits) { return bits == 4 || bits == 8; }

// What takes the offset 2^(bits - 1) off each of a byte's codes.
uint8_t offset_flip(int bits) { return bits == 4 ? 0x88 : 0x80; }

// Codes of other sizes, one by one: row(o) is the stream of output o.
template <typename Row>
void set_codes(CodedMatrix& coded, int bits, const Row& row) {
  coded.codes.resize(static_cast<size_t>(coded.size.out * coded.row_bytes()));
  for (int64_t o = 0; o < coded.size.out; ++o) {
    const BitStream codes = row(o);
    uint8_t* target = coded.codes.data() + o * coded.row_bytes();
    for (int64_t i = 0; i < coded.size.in; ++i) {
      const uint8_t code = centered_code(codes.at(i), bits);
      if (coded.nibbles()) {
        target[i / 2] |= static_cast<uint8_t>((code & 0xfu) << (i % 2 * 4));
      } else {
        target[i] = code;
      }
    }
  }
}

// Scales [groups, out] as CodedMatrix wants them.
void set_transposed_scales(CodedMatrix& coded, const EncodedTensor& tensor, int64_t groups) {
  const std::vector<float> values = scale_values(tensor);
  const int64_t out = coded.size.out;
  std::vector<float>& target = coded.format.grouped() ? coded.scales : coded.output_scales;
  target.resize(values.size());
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t g = 0; g < groups; ++g) {
      target[static_cast<size_t>(o * groups + g)] = values[static_cast<size_t>(g * out + o)];
    }
  }
}

// Zero points by zero_at(group, output); of a symmetric matrix they must all be in the middle.
template <typename ZeroAt>
void set_zeros(CodedMatrix& coded, const QuantScheme& scheme, int64_t groups,
               const EncodedTensor& tensor, const ZeroAt& zero_at) {
  if (coded.format.zero_points) coded.zeros.resize(static_cast<size_t>(coded.size.out * groups));
  for (int64_t o = 0; o < coded.size.out; ++o) {
    for (int64_t g = 0; g < groups; ++g) {
      const int8_t zero = centered_zero(zero_at(g, o), scheme.bits, tensor);
      if (coded.format.zero_points) {
        coded.zeros[static_cast<size_t>(o * groups + g)] = zero;
      } else {
        GANTRY_CHECK(zero == 0, ErrorCode::kFormat,
                     "{}: group {}, output {}: expected the zero point {} of a symmetric matrix, "
                     "found {}",
                     tensor.name, g, o, 1 << (scheme.bits - 1), zero_at(g, o));
      }
    }
  }
}

// Group of each input as g_idx says; empty where they are in order.
std::vector<int32_t> groups_of_inputs(const QuantScheme& scheme, const EncodedMatrix& matrix,
                                      std::string_view suffix) {
  const EncodedTensor* g_idx = matrix.find(suffix);
  GANTRY_CHECK(g_idx != nullptr || !scheme.act_order, ErrorCode::kFormat,
               "{}: missing {}, which the config's activation order calls for",
               matrix.tensors.begin()->second.name, suffix);
  const int64_t count = num_groups(scheme, matrix.size);
  if (g_idx == nullptr) return {};
  require_tensor(*g_idx, DType::kI32, {matrix.size.in});
  std::vector<int32_t> groups(static_cast<size_t>(matrix.size.in));
  std::memcpy(groups.data(), g_idx->data, groups.size() * 4);
  const int64_t group = scheme.group_size > 0 ? scheme.group_size : matrix.size.in;
  bool in_order = true;
  for (size_t i = 0; i < groups.size(); ++i) {
    GANTRY_CHECK(groups[i] >= 0 && groups[i] < count, ErrorCode::kFormat,
                 "{}: element {}: expected a group below {}, found {}", g_idx->name, i, count,
                 groups[i]);
    in_order &= groups[i] == static_cast<int64_t>(i) / group;
  }
  if (in_order) groups.clear();
  return groups;
}

// Column c of eight stands in nibble kAwqNibble[c], the inverse of kAwqOutput.
constexpr std::array<int, 8> kAwqNibble = {0, 4, 1, 5, 2, 6, 3, 7};

uint32_t awq_at(const EncodedTensor& tensor, int64_t row, int64_t column) {
  uint32_t word = 0;
  std::memcpy(&word, tensor.data + (row * tensor.shape[1] + column / 8) * 4, 4);
  return (word >> (4 * kAwqNibble[static_cast<size_t>(column % 8)])) & 0xfu;
}

}  // namespace

WeightFormat gptq_format(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  check_bits(scheme, matrix);
  return integer_format(scheme, matrix, !scheme.symmetric, "scales");
}

// W[o, i] = scales[g, o] * (q - z), q from qweight [in * b / 32, out], z from qzeros
// [groups, out * b / 32] plus one in the first format: 2^b is a legal zero point.
CodedMatrix code_gptq(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = gptq_format(scheme, matrix), .size = matrix.size};
  const auto [out, in] = matrix.size;
  const int bits = scheme.bits;
  const int64_t groups = num_groups(scheme, matrix.size);
  const EncodedTensor& qweight = matrix.require("qweight");
  const EncodedTensor& qzeros = matrix.require("qzeros");
  const EncodedTensor& scales = matrix.require("scales");
  const int64_t zero_words = words_of(out, bits);
  require_tensor(qweight, DType::kI32, {words_of(in, bits), out});
  require_tensor(qzeros, DType::kI32, {groups, zero_words});
  require_tensor(scales, scales.dtype, {groups, out});
  coded.input_groups = groups_of_inputs(scheme, matrix, "g_idx");
  set_transposed_scales(coded, scales, groups);
  set_zeros(coded, scheme, groups, qzeros, [&](int64_t g, int64_t o) {
    return static_cast<int64_t>(BitStream(qzeros, g * zero_words, 1, bits).at(o)) +
           (scheme.zero_minus_one ? 1 : 0);
  });
  if (is_byte_order(bits)) {
    coded.own_codes(words_of(in, bits) * 4);
    coded.flip = offset_flip(bits);
    transpose_words(qweight.data, words_of(in, bits), out, coded.codes.data());
  } else {
    set_codes(coded, bits, [&](int64_t o) { return BitStream(qweight, o, out, bits); });
  }
  return coded;
}

WeightFormat awq_format(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  GANTRY_CHECK(scheme.bits == 4, ErrorCode::kUnsupported, "{}: AWQ of {} bits",
               matrix.tensors.begin()->second.name, scheme.bits);
  return integer_format(scheme, matrix, !scheme.symmetric, "scales");
}

// W[o, i] = scales[g, o] * (q - z), both in words of eight interleaved columns; without zero points
// they are 8.
CodedMatrix code_awq(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = awq_format(scheme, matrix), .size = matrix.size};
  const auto [out, in] = matrix.size;
  const int64_t groups = num_groups(scheme, matrix.size);
  const EncodedTensor& qweight = matrix.require("qweight");
  const EncodedTensor* qzeros = matrix.find("qzeros");
  const EncodedTensor& scales = matrix.require("scales");
  GANTRY_CHECK(qzeros != nullptr || scheme.symmetric, ErrorCode::kFormat,
               "{}: missing qzeros of an asymmetric matrix", qweight.name);
  require_tensor(qweight, DType::kI32, {in, (out + 7) / 8});
  require_tensor(scales, scales.dtype, {groups, out});
  set_transposed_scales(coded, scales, groups);
  if (qzeros != nullptr) {
    require_tensor(*qzeros, DType::kI32, {groups, (out + 7) / 8});
    set_zeros(coded, scheme, groups, *qzeros,
              [&](int64_t g, int64_t o) { return static_cast<int64_t>(awq_at(*qzeros, g, o)); });
  }
  coded.own_codes((in + 7) / 8 * 4);
  coded.flip = offset_flip(scheme.bits);
  rows_of_awq(qweight.data, coded.size, coded.codes.data());
  return coded;
}

WeightFormat packed_int_format(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  check_bits(scheme, matrix);
  return integer_format(scheme, matrix, !scheme.symmetric, "weight_scale");
}

// W[o, i] = weight_scale[o, g] * (u - z): u in weight_packed [out, in * b / 32]; z = 2^(b-1), or
// weight_zero_point [out * b / 32, groups], packed along out and offset like u.
CodedMatrix code_packed_int(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = packed_int_format(scheme, matrix), .size = matrix.size};
  const auto [out, in] = matrix.size;
  const int bits = scheme.bits;
  const int64_t groups =
      scheme.grid == ScaleGrid::kGroup ? num_groups(scheme, matrix.size) : int64_t{1};
  const EncodedTensor& packed = matrix.require("weight_packed");
  const EncodedTensor* zeros = matrix.find("weight_zero_point");
  const int64_t words = words_of(in, bits);
  require_tensor(packed, DType::kI32, {out, words});
  GANTRY_CHECK((zeros != nullptr) == !scheme.symmetric, ErrorCode::kFormat,
               "{}: the config says {}, the zero points say otherwise", packed.name,
               scheme.symmetric ? "symmetric" : "asymmetric");
  coded.input_groups = groups_of_inputs(scheme, matrix, "weight_g_idx");
  set_scales(coded, matrix.require("weight_scale"), scheme);
  if (zeros != nullptr) {
    require_tensor(*zeros, DType::kI32, {words_of(out, bits), groups});
    set_zeros(coded, scheme, groups, *zeros, [&](int64_t g, int64_t o) {
      return static_cast<int64_t>(BitStream(*zeros, g, groups, bits).at(o));
    });
  }
  if (is_byte_order(bits)) {
    coded.file_codes = reinterpret_cast<const uint8_t*>(packed.data);
    coded.padded_row_bytes = words * 4;
    coded.flip = offset_flip(bits);
  } else {
    set_codes(coded, bits, [&](int64_t o) { return BitStream(packed, o * words, 1, bits); });
  }
  return coded;
}

WeightFormat row_pairs_format(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  return integer_format(scheme, matrix, /*zeros=*/false, "weight_scale");
}

// ModelOpt INT4: weight u8 [out / 2, in], the low nibble is row 2 r, two's complement.
CodedMatrix code_row_pairs_int4(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  CodedMatrix coded{.format = row_pairs_format(scheme, matrix), .size = matrix.size};
  const auto [out, in] = matrix.size;
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, DType::kU8, {(out + 1) / 2, in});
  set_scales(coded, matrix.require("weight_scale"), scheme);
  coded.codes.resize(static_cast<size_t>(out * coded.row_bytes()));
  rows_of_pairs(weight.data, coded.size, coded.codes.data());
  return coded;
}

}  // namespace gantry
