// Integers of 2 to 8 bits: GPTQ, AWQ, compressed-tensors' pack-quantized, ModelOpt's row pairs.
// Packed words are little endian streams: element i of b bits is at bit i * b, and may straddle two
// words where b does not divide 32.

#include <array>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/quant/element_formats.h"
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

int64_t group_of(const QuantScheme& scheme, const MatrixSize& size) {
  return scheme.group_size > 0 ? scheme.group_size : size.in;
}

int64_t num_groups(const QuantScheme& scheme, const MatrixSize& size) {
  const int64_t group = group_of(scheme, size);
  return (size.in + group - 1) / group;
}

void check_bits(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  GANTRY_CHECK(scheme.bits >= 2 && scheme.bits <= 8, ErrorCode::kFormat, "{}: integers of {} bits",
               matrix.tensors.begin()->second.name, scheme.bits);
}

// Group of each input: in order, or as g_idx says.
std::vector<int32_t> groups_of_inputs(const QuantScheme& scheme, const EncodedMatrix& matrix,
                                      std::string_view suffix) {
  std::vector<int32_t> groups(static_cast<size_t>(matrix.size.in));
  const EncodedTensor* g_idx = matrix.find(suffix);
  GANTRY_CHECK(g_idx != nullptr || !scheme.act_order, ErrorCode::kFormat,
               "{}: missing {}, which the config's activation order calls for",
               matrix.tensors.begin()->second.name, suffix);
  if (g_idx == nullptr) {
    const int64_t group = group_of(scheme, matrix.size);
    for (size_t i = 0; i < groups.size(); ++i)
      groups[i] = static_cast<int32_t>(static_cast<int64_t>(i) / group);
    return groups;
  }
  require_tensor(*g_idx, DType::kI32, {matrix.size.in});
  std::memcpy(groups.data(), g_idx->data, groups.size() * 4);
  const int64_t count = num_groups(scheme, matrix.size);
  for (size_t i = 0; i < groups.size(); ++i) {
    GANTRY_CHECK(groups[i] >= 0 && groups[i] < count, ErrorCode::kFormat,
                 "{}: element {}: expected a group below {}, found {}", g_idx->name, i, count,
                 groups[i]);
  }
  return groups;
}

// Column c of eight stands in nibble kAwqNibble[c].
constexpr std::array<int, 8> kAwqNibble = {0, 4, 1, 5, 2, 6, 3, 7};

uint32_t awq_at(const EncodedTensor& tensor, int64_t row, int64_t column) {
  uint32_t word = 0;
  std::memcpy(&word, tensor.data + (row * tensor.shape[1] + column / 8) * 4, 4);
  return (word >> (4 * kAwqNibble[static_cast<size_t>(column % 8)])) & 0xfu;
}

}  // namespace

// W[o, i] = scales[g, o] * (q - z), q from qweight [in * b / 32, out], z from qzeros
// [groups, out * b / 32] plus one in the first format: 2^b is a legal zero point.
DecodedMatrix decode_gptq(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  check_bits(scheme, matrix);
  const auto [out, in] = matrix.size;
  const int64_t groups = num_groups(scheme, matrix.size);
  const EncodedTensor& qweight = matrix.require("qweight");
  const EncodedTensor& qzeros = matrix.require("qzeros");
  const EncodedTensor& scales = matrix.require("scales");
  const int64_t zero_words = words_of(out, scheme.bits);
  require_tensor(qweight, DType::kI32, {words_of(in, scheme.bits), out});
  require_tensor(qzeros, DType::kI32, {groups, zero_words});
  require_tensor(scales, scales.dtype, {groups, out});
  const std::vector<float> scale = scale_values(scales);
  const std::vector<int32_t> group = groups_of_inputs(scheme, matrix, "g_idx");
  DecodedMatrix decoded(static_cast<size_t>(out * in));
  for (int64_t o = 0; o < out; ++o) {
    const BitStream codes(qweight, o, out, scheme.bits);
    for (int64_t i = 0; i < in; ++i) {
      const int64_t g = group[static_cast<size_t>(i)];
      const auto zero =
          static_cast<int32_t>(BitStream(qzeros, g * zero_words, 1, scheme.bits).at(o) +
                               (scheme.zero_minus_one ? 1 : 0));
      const auto code = static_cast<int32_t>(codes.at(i));
      decoded[static_cast<size_t>(o * in + i)] =
          scale[static_cast<size_t>(g * out + o)] * static_cast<float>(code - zero);
    }
  }
  return decoded;
}

// W[o, i] = scales[g, o] * (q - z), both in words of eight interleaved columns; without zero points
// they are 8.
DecodedMatrix decode_awq(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const auto [out, in] = matrix.size;
  const int64_t groups = num_groups(scheme, matrix.size);
  const EncodedTensor& qweight = matrix.require("qweight");
  const EncodedTensor* qzeros = matrix.find("qzeros");
  const EncodedTensor& scales = matrix.require("scales");
  GANTRY_CHECK(scheme.bits == 4, ErrorCode::kUnsupported, "{}: AWQ of {} bits", qweight.name,
               scheme.bits);
  GANTRY_CHECK(qzeros != nullptr || scheme.symmetric, ErrorCode::kFormat,
               "{}: missing qzeros of an asymmetric matrix", qweight.name);
  require_tensor(qweight, DType::kI32, {in, (out + 7) / 8});
  if (qzeros != nullptr) require_tensor(*qzeros, DType::kI32, {groups, (out + 7) / 8});
  require_tensor(scales, scales.dtype, {groups, out});
  const std::vector<float> scale = scale_values(scales);
  DecodedMatrix decoded(static_cast<size_t>(out * in));
  for (int64_t i = 0; i < in; ++i) {
    const int64_t g = i / group_of(scheme, matrix.size);
    for (int64_t o = 0; o < out; ++o) {
      const auto zero = qzeros != nullptr ? static_cast<int32_t>(awq_at(*qzeros, g, o)) : 8;
      const auto code = static_cast<int32_t>(awq_at(qweight, i, o));
      decoded[static_cast<size_t>(o * in + i)] =
          scale[static_cast<size_t>(g * out + o)] * static_cast<float>(code - zero);
    }
  }
  return decoded;
}

// W[o, i] = weight_scale[o, g] * (u - z): u in weight_packed [out, in * b / 32]; z = 2^(b-1), or
// weight_zero_point [out * b / 32, groups], packed along out and offset like u.
DecodedMatrix decode_packed_int(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  check_bits(scheme, matrix);
  const auto [out, in] = matrix.size;
  const int64_t groups =
      scheme.grid == ScaleGrid::kGroup ? num_groups(scheme, matrix.size) : int64_t{1};
  const EncodedTensor& packed = matrix.require("weight_packed");
  const EncodedTensor* zeros = matrix.find("weight_zero_point");
  const int64_t words = words_of(in, scheme.bits);
  require_tensor(packed, DType::kI32, {out, words});
  GANTRY_CHECK((zeros != nullptr) == !scheme.symmetric, ErrorCode::kFormat,
               "{}: the config says {}, the zero points say otherwise", packed.name,
               scheme.symmetric ? "symmetric" : "asymmetric");
  if (zeros != nullptr) {
    require_tensor(*zeros, DType::kI32, {words_of(out, scheme.bits), groups});
  }
  const ScaleValues scales = read_scales(matrix.require("weight_scale"), matrix.size, scheme);
  const std::vector<int32_t> group = groups_of_inputs(scheme, matrix, "weight_g_idx");
  DecodedMatrix decoded(static_cast<size_t>(out * in));
  for (int64_t o = 0; o < out; ++o) {
    const BitStream codes(packed, o * words, 1, scheme.bits);
    for (int64_t i = 0; i < in; ++i) {
      const int64_t g = groups > 1 ? group[static_cast<size_t>(i)] : 0;
      const int32_t zero =
          zeros == nullptr ? 1 << (scheme.bits - 1)
                           : static_cast<int32_t>(BitStream(*zeros, g, groups, scheme.bits).at(o));
      const auto code = static_cast<int32_t>(codes.at(i));
      decoded[static_cast<size_t>(o * in + i)] =
          scales.values[static_cast<size_t>(o * groups + g)] * static_cast<float>(code - zero);
    }
  }
  return decoded;
}

// ModelOpt INT4: weight u8 [out / 2, in], the low nibble is row 2 r, two's complement.
DecodedMatrix decode_row_pairs_int4(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const auto [out, in] = matrix.size;
  const EncodedTensor& weight = matrix.require("weight");
  require_tensor(weight, DType::kU8, {(out + 1) / 2, in});
  const ScaleValues scales = read_scales(matrix.require("weight_scale"), matrix.size, scheme);
  DecodedMatrix decoded(static_cast<size_t>(out * in));
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const auto byte = static_cast<uint32_t>(weight.data[o / 2 * in + i]);
      const int32_t code = sign_extend(o % 2 == 0 ? byte & 0xfu : byte >> 4, 4);
      decoded[static_cast<size_t>(o * in + i)] = scales.at(o, i) * static_cast<float>(code);
    }
  }
  return decoded;
}

}  // namespace gantry
