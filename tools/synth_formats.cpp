#include "tools/synth_formats.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"

// Codes are as large as a quantizer would make them, which divides by the largest magnitude that a
// scale covers; scales are what is left of 1/sqrt(in).

namespace gantry::cli {
namespace {

constexpr double kLargestE4M3 = 448.0;
constexpr double kLargestE2M1 = 6.0;

template <typename T>
Content given(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return Content::given(std::move(bytes));
}

float int8_value(uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); }
float offset_int8_value(uint8_t code) { return static_cast<float>(code) - 128.0F; }
// Packed as code + 8, the middle of an asymmetric range too.
float offset_int4_value(uint8_t code) { return static_cast<float>(code) - 8.0F; }
float int4_value(uint8_t code) { return static_cast<float>(code < 8 ? code : code - 16); }

// Weights that share a scale.
int64_t covered(const WeightQuantization& quantization, const MatrixSize& size) {
  return (quantization.group > 0 ? quantization.group : size.in) *
         (quantization.rows > 0 ? quantization.rows : size.out);
}

// Exponents of MX scales for this deviation. FP4: the power of two that leaves codes a deviation of
// 1.75 to 3.5, as in real groups of 32: their largest is between 4 and 8 before it saturates at 6
// (OCP MX 1.0). The largest codes are used, and saturation takes less than a tenth off the weights'
// deviation. FP8: the largest stay below 448.
constexpr double kExponentSpread = 1.25;  // see e8m0_scales

int scale_exponent(const WeightQuantization& quantization, const MatrixSize& size,
                   double deviation) {
  const double wanted = quantization.element == WeightElement::kE2M1
                            ? 1.75
                            : kLargestE4M3 / 2.0 / typical_largest(covered(quantization, size));
  return static_cast<int>(std::floor(std::log2(deviation / kExponentSpread / wanted)));
}

Codes make_codes(const MatrixExport& format, const MatrixSize& size, double deviation) {
  const WeightQuantization& quantization = format.quantization;
  const double largest = typical_largest(covered(quantization, size));
  if (quantization.scale == ScaleType::kE8M0) {
    const double spread =
        std::ldexp(deviation / kExponentSpread, -scale_exponent(quantization, size, deviation));
    return quantization.element == WeightElement::kE2M1 ? nibble_codes(e2m1_to_f32, spread)
                                                        : byte_codes(e4m3_to_f32, spread);
  }
  switch (quantization.element) {
    case WeightElement::kE4M3:
      return byte_codes(e4m3_to_f32, kLargestE4M3 / largest);
    case WeightElement::kE2M1:
      return nibble_codes(e2m1_to_f32, kLargestE2M1 / largest);
    case WeightElement::kInt8: {
      const bool is_signed = format.find(ExportRole::kCodes)->layout == ExportLayout::kBytes;
      return byte_codes(is_signed ? int8_value : offset_int8_value, 127.0 / largest);
    }
    default: {
      const bool is_signed = format.find(ExportRole::kCodes)->layout == ExportLayout::kRowPairs;
      return nibble_codes(is_signed ? int4_value : offset_int4_value, 7.5 / largest);
    }
  }
}

// Zero points of the middle, or one more or less; GPTQ's first format stores one less.
Content zeros(const MatrixExport& format, const ExportTensor& tensor) {
  const int bits = bits_of(format.quantization.element);
  const int less = tensor.layout == ExportLayout::kZeroRows ? 1 : 0;
  const auto middle = static_cast<uint8_t>((1 << (bits - 1)) - less);
  if (format.quantization.zero_points) return nibbles_around(middle);
  const auto byte = bits == 4 ? static_cast<uint8_t>(middle << 4 | middle) : middle;
  return Content::drawn(std::vector<uint8_t>{byte});
}

// Draws what the roles of one matrix' tensors call for.
class MatrixContents {
 public:
  MatrixContents(const MatrixExport& format, const MatrixSize& size)
      : format_(format),
        size_(size),
        deviation_(1.0 / std::sqrt(static_cast<double>(size.in))),
        codes_(make_codes(format, size, deviation_)) {}

  Content of(const ExportTensor& tensor) {
    constexpr double kLargestInput = 5.0;
    const WeightQuantization& quantization = format_.quantization;
    switch (tensor.role) {
      case ExportRole::kCodes:
        return std::move(codes_.content);
      case ExportRole::kScales:
        return scales_of(tensor);
      case ExportRole::kZeros:
        return zeros(format_, tensor);
      case ExportRole::kSecondScale:
        return given<float>({second_scale(quantization, largest())});
      case ExportRole::kGroupIndex: {
        std::vector<int32_t> groups(static_cast<size_t>(size_.in));
        for (size_t i = 0; i < groups.size(); ++i)
          groups[i] = static_cast<int32_t>(static_cast<int64_t>(i) / quantization.group);
        return given(groups);
      }
      case ExportRole::kInputFactors:
        return given(std::vector<uint16_t>(static_cast<size_t>(size_.in), f32_to_bf16(1.0F)));
      default: {
        const QuantizedWeights none{.quantization = quantization, .out = size_.out, .in = size_.in};
        return Content::given(
            export_bytes(format_, tensor, none, static_cast<float>(kLargestInput)));
      }
    }
  }

 private:
  // Gate and up share what follows from it, as ModelOpt has it, and so does here every matrix of a
  // size.
  [[nodiscard]] float largest() const {
    return static_cast<float>(deviation_ * typical_largest(size_.out * size_.in));
  }

  [[nodiscard]] Content scales_of(const ExportTensor& tensor) const {
    const WeightQuantization& quantization = format_.quantization;
    if (quantization.scale == ScaleType::kE8M0)
      return e8m0_scales(scale_exponent(quantization, size_, deviation_));
    double rms = codes_.rms;
    if (quantization.zero_points) {
      // A zero point is another number than the codes, so variances add.
      constexpr double kZeroVariance = 0.5;
      rms = std::sqrt(rms * rms + kZeroVariance);
    }
    double second = 1.0;
    if (quantization.two_levels()) {
      second = second_scale(quantization, largest());
      if (quantization.divides) second = 1.0 / second;
    }
    const double scale = deviation_ / (rms * second);
    if (quantization.group > 0 || quantization.rows > 0) return scales(tensor.dtype, scale);
    // Of the one that there is nothing is drawn.
    const QuantizedWeights one{.quantization = quantization,
                               .out = size_.out,
                               .in = size_.in,
                               .scales = {static_cast<float>(scale)}};
    return Content::given(export_bytes(format_, tensor, one, 0.0F));
  }

  const MatrixExport& format_;
  MatrixSize size_;
  double deviation_;
  Codes codes_;
};

}  // namespace

std::vector<MatrixTensor> synth_tensors(const ExportFormat& format, const MatrixSize& size) {
  MatrixContents contents(format.matrix, size);
  std::vector<MatrixTensor> tensors;
  for (const ExportTensor& tensor : format.matrix.tensors) {
    tensors.push_back({tensor.suffix, tensor.dtype, export_shape(format.matrix, tensor, size),
                       std::make_shared<const Content>(contents.of(tensor))});
  }
  return tensors;
}

}  // namespace gantry::cli
