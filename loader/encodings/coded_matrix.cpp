#include "loader/encodings/coded_matrix.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/pack_codes.h"

namespace gantry {
namespace {

DType dtype_of(ScaleType type) noexcept {
  switch (type) {
    case ScaleType::kF32:
      return DType::kF32;
    case ScaleType::kF16:
      return DType::kF16;
    case ScaleType::kBF16:
      return DType::kBF16;
    case ScaleType::kE4M3:
      return DType::kF8E4M3;
    case ScaleType::kE8M0:
      return DType::kF8E8M0;
    case ScaleType::kInt8:
    case ScaleType::kNone:
      break;
  }
  return DType::kI8;
}

int64_t first_non_finite(const std::vector<float>& values) noexcept {
  return find_non_finite(values.data(), DType::kF32, static_cast<int64_t>(values.size()));
}

// Index as CodedMatrix::scale has it, or -1.
int64_t first_non_finite_scale(const CodedMatrix& matrix) noexcept {
  if (matrix.file_scales == nullptr) return first_non_finite(matrix.scales);
  return find_non_finite(matrix.file_scales, dtype_of(matrix.format.scale),
                         matrix.size.out * matrix.num_groups());
}

}  // namespace

float CodedMatrix::scale(int64_t at) const noexcept {
  return file_scales != nullptr ? load_scale(file_scales, format.scale, at)
                                : scales[static_cast<size_t>(at)];
}

std::vector<float> dequantize(const CodedMatrix& matrix) {
  const auto [out, in] = matrix.size;
  const int64_t groups = matrix.num_groups();
  const bool levels = matrix.format.super_group > 0;
  float values[256];
  for (unsigned code = 0; code < 256; ++code)
    values[code] = code_value(matrix.format.element, static_cast<uint8_t>(code));
  std::vector<float> decoded(static_cast<size_t>(out * in));
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const auto at = static_cast<size_t>(o * in + i);
      float value = values[matrix.code(o, i)];
      if (groups > 0) {
        const int64_t g = matrix.input_groups.empty() ? i / matrix.format.group
                                                      : matrix.input_groups[static_cast<size_t>(i)];
        const int64_t group_at = o * groups + g;
        if (!matrix.zeros.empty()) {
          value -= static_cast<float>(matrix.zeros[static_cast<size_t>(group_at)]);
        }
        const int64_t super_at =
            levels ? o * matrix.num_supers() + g * matrix.format.group / matrix.format.super_group
                   : 0;
        const float scale = matrix.scale(group_at);
        value *= levels ? scale * matrix.super_scales[static_cast<size_t>(super_at)] : scale;
        if (!matrix.minimums.empty()) {
          const float minimum = matrix.minimums[static_cast<size_t>(group_at)];
          value -=
              levels ? minimum * matrix.super_minimums[static_cast<size_t>(super_at)] : minimum;
        }
      }
      if (matrix.output_divisor != 0.0F) {
        value /= matrix.output_divisor;
      } else if (!matrix.output_scales.empty()) {
        value *= matrix.output_scales[static_cast<size_t>(o)];
      }
      decoded[at] = value;
    }
  }
  return decoded;
}

int64_t find_non_finite(const CodedMatrix& matrix) noexcept {
  const auto [out, in] = matrix.size;
  const int64_t groups = matrix.num_groups();
  const int64_t scale = first_non_finite_scale(matrix);
  if (scale >= 0) return scale / groups * in + scale % groups * matrix.format.group;
  for (const auto* factors : {&matrix.minimums, &matrix.super_scales, &matrix.super_minimums}) {
    const int64_t at = first_non_finite(*factors);
    if (at < 0) continue;
    const bool super = factors != &matrix.minimums;
    const int64_t of_row = super ? matrix.num_supers() : groups;
    return at / of_row * in +
           at % of_row * (super ? matrix.format.super_group : matrix.format.group);
  }
  const int64_t row = first_non_finite(matrix.output_scales);
  if (row >= 0) return row * in;
  const WeightElement element = matrix.format.element;
  if (element != WeightElement::kE4M3 && element != WeightElement::kE5M2) return -1;
  const DType codes = element == WeightElement::kE4M3 ? DType::kF8E4M3 : DType::kF8E5M2;
  for (int64_t o = 0; o < out; ++o) {
    const int64_t bad = find_non_finite(matrix.code_row(o), codes, in);
    if (bad >= 0) return o * in + bad;
  }
  return -1;
}

WeightFormat shard_format(const WeightFormat& format, int64_t begin) noexcept {
  if (!format.grouped() || begin == 0) return format;
  WeightFormat cut = format;
  cut.group = std::gcd(format.group, begin);
  if (format.super_group > 0) cut.super_group = std::gcd(format.super_group, begin);
  return cut.group % 8 == 0 ? cut : WeightFormat{};
}

}  // namespace gantry
