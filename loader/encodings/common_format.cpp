#include "loader/encodings/common_format.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/pack_codes.h"

namespace gantry {
namespace {

constexpr int kNoCode = -1;

// The code of `to` with the value of each code of `from`; kNoCode where it has none (NaN has none
// either, and is refused before).
std::array<int, 256> code_table(WeightElement from, WeightElement to) {
  std::array<int, 256> table{};
  for (unsigned code = 0; code < (1u << bits_of(from)); ++code) {
    const float value = code_value(from, static_cast<uint8_t>(code));
    table[code] = kNoCode;
    for (unsigned target = 0; target < (1u << bits_of(to)); ++target) {
      if (code_value(to, static_cast<uint8_t>(target)) != value) continue;
      table[code] = static_cast<int>(target);
      break;
    }
  }
  return table;
}

bool holds(WeightElement to, WeightElement from) {
  if (to == from) return true;
  if (from == WeightElement::kE4M3 || from == WeightElement::kE5M2) return false;  // NaN
  const auto table = code_table(from, to);
  return std::find(table.begin(), table.begin() + (1 << bits_of(from)), kNoCode) ==
         table.begin() + (1 << bits_of(from));
}

std::optional<WeightElement> common_element(WeightElement a, WeightElement b) {
  for (const WeightElement element : {a, b, WeightElement::kInt8, WeightElement::kE4M3}) {
    if (holds(element, a) && holds(element, b)) return element;
  }
  return std::nullopt;
}

}  // namespace

std::optional<WeightFormat> common_format(const WeightFormat& a, const WeightFormat& b) {
  if (a == b) return a;
  const auto element = common_element(a.element, b.element);
  if (!element) return std::nullopt;
  WeightFormat common{.element = *element,
                      .zero_points = a.zero_points || b.zero_points,
                      .output_scale = a.output_scale || b.output_scale,
                      .minimums = a.minimums || b.minimums};
  if (!a.grouped() && !b.grouped()) return common;
  common.group = std::gcd(a.group, b.group);  // gcd(0, g) = g
  if (!a.grouped() || !b.grouped() || a.scale == b.scale) {
    common.scale = a.grouped() ? a.scale : b.scale;
    common.super_group = std::gcd(a.super_group, b.super_group);
  } else {
    common.scale = ScaleType::kF32;
  }
  return common.group % 8 == 0 ? std::optional(common) : std::nullopt;
}

CodedMatrix convert_format(const CodedMatrix& matrix, const WeightFormat& format) {
  const WeightFormat& own = matrix.format;
  const auto [out, in] = matrix.size;
  CodedMatrix converted{.format = format, .size = matrix.size};
  const auto table = code_table(own.element, format.element);
  converted.own_codes(converted.nibbles() ? (in + 1) / 2 : in);
  for (int64_t o = 0; o < out; ++o) {
    uint8_t* row = converted.codes.data() + o * converted.row_bytes();
    for (int64_t i = 0; i < in; ++i) {
      const uint8_t code = matrix.code(o, i);
      const auto target = static_cast<uint8_t>(own.element == format.element ? code : table[code]);
      if (converted.nibbles()) {
        row[i / 2] |= static_cast<uint8_t>(target << (i % 2 * 4));
      } else {
        row[i] = target;
      }
    }
  }
  if (format.output_scale) {
    converted.output_scales = matrix.output_scales;
    converted.output_scales.resize(static_cast<size_t>(out), 1.0F);
  }
  // Two levels stay two where both are; else they are multiplied out, exactly.
  const bool merges = own.super_group > 0 && format.super_group == 0;
  const int64_t groups = converted.num_groups();
  const auto values_of = [&](const std::vector<float>& stored, const std::vector<float>& supers,
                             bool scales, float missing) {
    std::vector<float> values;
    values.reserve(static_cast<size_t>(out * groups));
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t input = g * format.group;
        const bool has = scales ? own.grouped() : !stored.empty();
        if (!has) {
          values.push_back(missing);
          continue;
        }
        const int64_t at = o * matrix.num_groups() + input / own.group;
        float value = scales ? matrix.scale(at) : stored[static_cast<size_t>(at)];
        if (merges) {
          value *= supers[static_cast<size_t>(o * matrix.num_supers() + input / own.super_group)];
        }
        values.push_back(value);
      }
    }
    return values;
  };
  if (format.grouped()) {
    converted.scales = values_of(matrix.scales, matrix.super_scales, /*scales=*/true, 1.0F);
  }
  if (format.minimums) {
    converted.minimums = values_of(matrix.minimums, matrix.super_minimums, /*scales=*/false, 0.0F);
  }
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t g = 0; format.zero_points && g < groups; ++g) {
      const int64_t at =
          matrix.zeros.empty() ? 0 : o * matrix.num_groups() + g * format.group / own.group;
      converted.zeros.push_back(matrix.zeros.empty() ? int8_t{0}
                                                     : matrix.zeros[static_cast<size_t>(at)]);
    }
    for (int64_t s = 0; s < converted.num_supers(); ++s) {
      const bool levels = own.super_group > 0;
      const auto at = static_cast<size_t>(
          levels ? o * matrix.num_supers() + s * format.super_group / own.super_group : 0);
      converted.super_scales.push_back(levels ? matrix.super_scales[at] : 1.0F);
      if (!format.minimums) continue;
      converted.super_minimums.push_back(
          levels && !matrix.super_minimums.empty() ? matrix.super_minimums[at] : 0.0F);
    }
  }
  return converted;
}

}  // namespace gantry
