#include "loader/encodings/coded_matrix.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/grouped_gemm/pack_codes.h"

namespace gantry {
namespace {

// The first byte that is `bits` under `mask`, or -1: a branch-free pass over a step, then a search
// where it hit.
int64_t find_byte(const uint8_t* bytes, int64_t count, uint8_t mask, uint8_t bits) noexcept {
  constexpr int64_t kStep = 4096;
  for (int64_t begin = 0; begin < count; begin += kStep) {
    const int64_t end = std::min(count, begin + kStep);
    uint8_t hit = 0;
    for (int64_t i = begin; i < end; ++i)
      hit |= static_cast<uint8_t>((bytes[i] & mask) == bits);
    for (int64_t i = begin; hit != 0 && i < end; ++i) {
      if ((bytes[i] & mask) == bits) return i;
    }
  }
  return -1;
}

// Index as CodedMatrix::scale has it, or -1.
int64_t first_non_finite_scale(const CodedMatrix& matrix) noexcept {
  const int64_t count = matrix.size.out * matrix.num_groups();
  if (matrix.file_scales != nullptr && size_of(matrix.format.scale) == 1) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(matrix.file_scales);
    const uint8_t nan = matrix.format.scale == ScaleType::kE8M0 ? 0xff : 0x7f;
    return find_byte(bytes, count, nan, nan);
  }
  if (matrix.file_scales == nullptr) {
    const auto bad = std::find_if_not(matrix.scales.begin(), matrix.scales.end(),
                                      [](float scale) { return std::isfinite(scale); });
    return bad == matrix.scales.end() ? -1 : bad - matrix.scales.begin();
  }
  for (int64_t at = 0; at < count; ++at) {
    if (!std::isfinite(matrix.scale(at))) return at;
  }
  return -1;
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
    const auto bad = std::ranges::find_if_not(*factors, [](float f) { return std::isfinite(f); });
    if (bad == factors->end()) continue;
    const int64_t at = bad - factors->begin();
    const bool super = factors != &matrix.minimums;
    const int64_t of_row = super ? matrix.num_supers() : groups;
    return at / of_row * in +
           at % of_row * (super ? matrix.format.super_group : matrix.format.group);
  }
  for (size_t o = 0; o < matrix.output_scales.size(); ++o) {
    if (!std::isfinite(matrix.output_scales[o])) return static_cast<int64_t>(o) * in;
  }
  const WeightElement element = matrix.format.element;
  if (element != WeightElement::kE4M3 && element != WeightElement::kE5M2) return -1;
  // e5m2 has infinities, too.
  const uint8_t nan = element == WeightElement::kE4M3 ? 0x7f : 0x7c;
  for (int64_t o = 0; o < out; ++o) {
    const int64_t bad = find_byte(matrix.code_row(o), in, nan, nan);
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
