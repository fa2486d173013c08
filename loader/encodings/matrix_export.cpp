// Quantized matrices as exporters write them: the encode direction of decode_bytes.cpp and
// decode_integers.cpp.

#include "loader/encodings/matrix_export.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/encodings/code_orders.h"

namespace gantry {
namespace {

using Bytes = std::vector<std::byte>;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int bits_of_export(const MatrixExport& format) { return bits_of(format.quantization.element); }

template <typename T>
void append(Bytes& bytes, T value) {
  const size_t at = bytes.size();
  bytes.resize(at + sizeof(T));
  std::memcpy(bytes.data() + at, &value, sizeof(T));
}

// ---- codes -----------------------------------------------------------------------------------

// Rows of codes without gaps, 4 or 8 bits each.
Bytes packed_rows(const QuantizedWeights& weights) {
  const auto [out, in] = MatrixSize{weights.out, weights.in};
  const bool nibbles = bits_of(weights.quantization.element) == 4;
  const int64_t row_bytes = nibbles ? ceil_div(in, 2) : in;
  Bytes rows(static_cast<size_t>(out * row_bytes));
  if (!nibbles) {
    std::memcpy(rows.data(), weights.codes.data(), rows.size());
    return rows;
  }
  const WeightRowOps& ops = weight_row_ops(host_isas());
  for (int64_t o = 0; o < out; ++o) {
    ops.pack_nibbles(weights.codes.data() + o * in, in,
                     reinterpret_cast<uint8_t*>(rows.data()) + o * row_bytes);
  }
  return rows;
}

// Two's complement, as a byte each.
Bytes signed_bytes(const QuantizedWeights& weights) {
  const auto middle = static_cast<uint8_t>(1 << (bits_of(weights.quantization.element) - 1));
  Bytes bytes(weights.codes.size());
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(static_cast<uint8_t>(weights.codes[i] - middle));
  return bytes;
}

Bytes transposed(const Bytes& words, int64_t rows, int64_t cols) {
  Bytes turned(words.size());
  transpose_words(words.data(), rows, cols, reinterpret_cast<uint8_t*>(turned.data()));
  return turned;
}

// The 4-bit numbers of eight consecutive columns of [rows, cols] in AWQ's order, [cols / 8, rows].
template <typename At>
Bytes awq_columns(int64_t rows, int64_t cols, const At& at) {
  Bytes words(static_cast<size_t>(cols / 8 * rows * 4));
  for (int64_t c = 0; c < cols; c += 8) {
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t word = 0;
      for (int n = 0; n < 8; ++n)
        word |= static_cast<uint32_t>(at(r, c + kAwqOutput[n])) << (4 * n);
      std::memcpy(words.data() + (c / 8 * rows + r) * 4, &word, 4);
    }
  }
  return words;
}

Bytes awq_codes(const QuantizedWeights& weights) {
  const auto [out, in] = MatrixSize{weights.out, weights.in};
  const uint8_t* codes = weights.codes.data();
  const Bytes columns =
      awq_columns(in, out, [&, n = in](int64_t i, int64_t o) { return codes[o * n + i]; });
  return transposed(columns, out / 8, in);
}

// Codes of two outputs in a byte, in two's complement.
Bytes row_pairs(const QuantizedWeights& weights) {
  constexpr unsigned kMiddle = 8;
  const auto in = static_cast<size_t>(weights.in);
  const auto nibble = [&](size_t at) { return (weights.codes[at] - kMiddle) & 15U; };
  Bytes bytes(static_cast<size_t>(weights.out) / 2 * in);
  for (size_t b = 0; b < bytes.size(); ++b) {
    const size_t even = b / in * 2 * in + b % in;
    bytes[b] = static_cast<std::byte>(nibble(even) | nibble(even + in) << 4);
  }
  return bytes;
}

Bytes codes_as(const ExportTensor& tensor, const QuantizedWeights& weights) {
  switch (tensor.layout) {
    case ExportLayout::kBytes:
      if (weights.quantization.is_integer()) return signed_bytes(weights);
      return packed_rows(weights);
    case ExportLayout::kInWords: {
      const int64_t row_words = weights.in * bits_of(weights.quantization.element) / 32;
      return transposed(packed_rows(weights), weights.out, row_words);
    }
    case ExportLayout::kOutWords:
      return awq_codes(weights);
    case ExportLayout::kRowPairs:
      return row_pairs(weights);
    default:
      return packed_rows(weights);
  }
}

// ---- scales and zero points ------------------------------------------------------------------

void append_scale(Bytes& bytes, DType dtype, ScaleType type, float scale) {
  switch (dtype) {
    case DType::kF32:
      return append(bytes, scale);
    case DType::kF16:
      return append(bytes, f32_to_f16(scale));
    case DType::kBF16:
      return append(bytes, f32_to_bf16(scale));
    default:
      GANTRY_CHECK(type == ScaleType::kE8M0, ErrorCode::kInternal, "scales of type {}",
                   to_string(dtype));
      return append(bytes, static_cast<uint8_t>(std::ilogb(scale) + 127));
  }
}

Bytes scales_as(const ExportTensor& tensor, const QuantizedWeights& weights) {
  const WeightQuantization& quantization = weights.quantization;
  const int64_t blocks = quantization.num_row_blocks(weights.out);
  const int64_t groups = quantization.num_groups(weights.in);
  Bytes bytes;
  bytes.reserve(static_cast<size_t>(blocks * groups * size_of(tensor.dtype)));
  if (tensor.dtype == DType::kF8E4M3) {
    const auto count = static_cast<int64_t>(weights.scales.size());
    const float one = 1.0F;
    bytes.resize(weights.scales.size());
    weight_row_ops(host_isas())
        .codes({WeightElement::kE4M3, weights.scales.data(), count, count, &one, nullptr,
                reinterpret_cast<uint8_t*>(bytes.data())});
    return bytes;
  }
  const bool groups_first = tensor.layout == ExportLayout::kGroupsFirst;
  for (int64_t a = 0; a < (groups_first ? groups : blocks); ++a) {
    for (int64_t b = 0; b < (groups_first ? blocks : groups); ++b) {
      const int64_t at = groups_first ? b * groups + a : a * groups + b;
      append_scale(bytes, tensor.dtype, quantization.scale,
                   weights.scales[static_cast<size_t>(at)]);
    }
  }
  return bytes;
}

// Words of `bits` each along the outputs of one group.
void append_zero_words(Bytes& bytes, const QuantizedWeights& weights, int64_t group, int bits,
                       int minus) {
  const int64_t groups = weights.quantization.num_groups(weights.in);
  const int per_word = 32 / bits;
  const uint32_t mask = bits == 8 ? 0xffu : 0xfu;
  for (int64_t o = 0; o < weights.out; o += per_word) {
    uint32_t word = 0;
    for (int n = 0; n < per_word && o + n < weights.out; ++n) {
      const auto zero = static_cast<uint32_t>(
          weights.zeros[static_cast<size_t>((o + n) * groups + group)] - minus);
      word |= (zero & mask) << (bits * n);
    }
    append(bytes, word);
  }
}

Bytes zeros_as(const ExportTensor& tensor, const QuantizedWeights& weights) {
  const int64_t groups = weights.quantization.num_groups(weights.in);
  const int bits = bits_of(weights.quantization.element);
  if (tensor.layout == ExportLayout::kZeroAwq) {
    const Bytes columns = awq_columns(groups, weights.out, [&](int64_t g, int64_t o) {
      return weights.zeros[static_cast<size_t>(o * groups + g)];
    });
    return transposed(columns, weights.out / 8, groups);
  }
  Bytes words;
  const int minus = tensor.layout == ExportLayout::kZeroRows ? 1 : 0;
  for (int64_t g = 0; g < groups; ++g)
    append_zero_words(words, weights, g, bits, minus);
  if (tensor.layout == ExportLayout::kZeroRows) return words;
  return transposed(words, groups, ceil_div(weights.out * bits, 32));
}

// ---- the rest --------------------------------------------------------------------------------

Bytes single_float(DType dtype, float value) {
  Bytes bytes;
  append_scale(bytes, dtype, ScaleType::kNone, value);
  return bytes;
}

float input_scale(const MatrixExport& format, float amax) {
  if (!format.quantization.two_levels()) return std::max(amax, 0x1p-100F) / 448.0F;
  return second_scale(format.quantization, amax);
}

Bytes group_index(const QuantizedWeights& weights) {
  Bytes bytes;
  const int64_t group = weights.quantization.group > 0 ? weights.quantization.group : weights.in;
  for (int64_t i = 0; i < weights.in; ++i) {
    append(bytes, weights.input_groups.empty() ? static_cast<int32_t>(i / group)
                                               : weights.input_groups[static_cast<size_t>(i)]);
  }
  return bytes;
}

}  // namespace

const ExportTensor* MatrixExport::find(ExportRole role) const noexcept {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const ExportTensor& t) { return t.role == role; });
  return found == tensors.end() ? nullptr : &*found;
}

std::vector<int64_t> export_shape(const MatrixExport& format, const ExportTensor& tensor,
                                  const MatrixSize& size) {
  const auto [out, in] = size;
  const WeightQuantization& quantization = format.quantization;
  const int bits = bits_of_export(format);
  const int64_t groups = quantization.num_groups(in);
  switch (tensor.layout) {
    case ExportLayout::kBytes:
      return {out, in};
    case ExportLayout::kNibbles:
      return {out, in / 2};
    case ExportLayout::kBlocks:
      return {out, groups, quantization.group / 2};
    case ExportLayout::kRowPairs:
      return {out / 2, in};
    case ExportLayout::kRowWords:
      return {out, in * bits / 32};
    case ExportLayout::kInWords:
      return {in * bits / 32, out};
    case ExportLayout::kOutWords:
      return {in, out / 8};
    case ExportLayout::kScalar:
      return {};
    case ExportLayout::kOne:
      return {1};
    case ExportLayout::kGrid:
      return {quantization.num_row_blocks(out), groups};
    case ExportLayout::kGroupsFirst:
      return {groups, out};
    case ExportLayout::kZeroRows:
    case ExportLayout::kZeroAwq:
      return {groups, out * bits / 32};
    case ExportLayout::kZeroColumns:
      return {ceil_div(out * bits, 32), groups};
    case ExportLayout::kPair:
      return {2};
    case ExportLayout::kInputs:
      return {in};
  }
  return {};
}

std::string misfit(const MatrixExport& format, const MatrixSize& size) {
  const WeightQuantization& quantization = format.quantization;
  // Blocks of FP8 may be cut by the matrix' end; groups along a row may not.
  if (quantization.rows == 1 && quantization.group > 0 && size.in % quantization.group != 0) {
    return fmt::format("rows of {} do not divide into groups of {}", size.in, quantization.group);
  }
  const int64_t per_word = 32 / bits_of_export(format);
  for (const ExportTensor& tensor : format.tensors) {
    const bool out_words = tensor.layout == ExportLayout::kOutWords ||
                           tensor.layout == ExportLayout::kZeroRows ||
                           tensor.layout == ExportLayout::kZeroAwq;
    if (out_words && size.out % per_word != 0)
      return fmt::format("{} outputs do not fill words of {}", size.out, per_word);
    const bool in_words =
        tensor.layout == ExportLayout::kRowWords || tensor.layout == ExportLayout::kInWords;
    if (in_words && size.in % per_word != 0)
      return fmt::format("rows of {} do not fill words of {}", size.in, per_word);
    if (tensor.layout == ExportLayout::kRowPairs && size.out % 2 != 0)
      return fmt::format("{} outputs do not fill bytes of 2", size.out);
    if (tensor.layout == ExportLayout::kNibbles && size.in % 2 != 0)
      return fmt::format("rows of {} do not fill bytes of 2", size.in);
  }
  return {};
}

std::vector<std::byte> export_bytes(const MatrixExport& format, const ExportTensor& tensor,
                                    const QuantizedWeights& weights, float input_amax,
                                    std::span<const float> input_factors) {
  switch (tensor.role) {
    case ExportRole::kCodes:
      return codes_as(tensor, weights);
    case ExportRole::kScales:
      return scales_as(tensor, weights);
    case ExportRole::kZeros:
      return zeros_as(tensor, weights);
    case ExportRole::kSecondScale:
      return single_float(tensor.dtype, weights.second);
    case ExportRole::kInputScale:
      return single_float(tensor.dtype, input_scale(format, input_amax));
    case ExportRole::kShape: {
      Bytes bytes;
      append(bytes, weights.out);
      append(bytes, weights.in);
      return bytes;
    }
    case ExportRole::kGroupIndex:
      return group_index(weights);
    case ExportRole::kInputFactors: {
      Bytes bytes;
      for (size_t i = 0; i < static_cast<size_t>(weights.in); ++i)
        append_scale(bytes, tensor.dtype, ScaleType::kNone,
                     input_factors.empty() ? 1.0F : input_factors[i]);
      return bytes;
    }
  }
  return {};
}

}  // namespace gantry
