#include "loader/encodings/coded_matrix.h"

#include <cmath>
#include <numeric>

#include "kernels/grouped_gemm/pack_codes.h"

namespace gantry {
namespace {

constexpr int64_t kSmallestGroup = 16;

}  // namespace

std::vector<float> dequantize(const CodedMatrix& matrix) {
  const auto [out, in] = matrix.size;
  const int64_t groups = matrix.num_groups();
  float values[256];
  for (unsigned code = 0; code < 256; ++code)
    values[code] = code_value(matrix.format.element, static_cast<uint8_t>(code));
  std::vector<float> decoded(static_cast<size_t>(out * in));
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const auto at = static_cast<size_t>(o * in + i);
      float value = values[matrix.codes[at]];
      if (groups > 0) {
        const int64_t g = matrix.input_groups.empty() ? i / matrix.format.group
                                                      : matrix.input_groups[static_cast<size_t>(i)];
        const auto group_at = static_cast<size_t>(o * groups + g);
        if (!matrix.zeros.empty()) value -= static_cast<float>(matrix.zeros[group_at]);
        value *= matrix.scales[group_at];
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
  for (size_t at = 0; at < matrix.scales.size(); ++at) {
    if (std::isfinite(matrix.scales[at])) continue;
    const auto row = static_cast<int64_t>(at) / groups;
    return row * in + static_cast<int64_t>(at) % groups * matrix.format.group;
  }
  for (size_t o = 0; o < matrix.output_scales.size(); ++o) {
    if (!std::isfinite(matrix.output_scales[o])) return static_cast<int64_t>(o) * in;
  }
  if (matrix.format.element != WeightElement::kE4M3) return -1;
  constexpr int64_t kStep = 4096;  // a branch-free pass over a step, then a search where it hit
  for (int64_t begin = 0; begin < out * in; begin += kStep) {
    const int64_t end = std::min(out * in, begin + kStep);
    unsigned hit = 0;
    for (int64_t i = begin; i < end; ++i)
      hit |= static_cast<unsigned>((matrix.codes[static_cast<size_t>(i)] & 0x7fu) == 0x7fu);
    for (int64_t i = begin; hit != 0 && i < end; ++i) {
      if ((matrix.codes[static_cast<size_t>(i)] & 0x7fu) == 0x7fu) return i;
    }
  }
  return -1;
}

WeightFormat shard_format(const WeightFormat& format, int64_t begin) noexcept {
  if (!format.grouped() || begin % format.group == 0) return format;
  WeightFormat cut = format;
  cut.group = std::gcd(format.group, begin);
  return cut.group >= kSmallestGroup && cut.group % 8 == 0 ? cut : WeightFormat{};
}

}  // namespace gantry
