#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/coded_kernels.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/quant/weight_format.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

// ---- the formats, stated by arithmetic ---------------------------------------------------------

/// (-1)^sign 2^exponent (1 + mantissa / 2^bits), without the 1 in the lowest binade.
inline double small_float(unsigned code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto mantissa =
      std::ldexp(static_cast<double>(code % (1u << mantissa_bits)), -mantissa_bits);
  const auto exponent = static_cast<int>((code >> mantissa_bits) % (1u << exponent_bits));
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1.0 + mantissa, exponent - bias);
  return (code >> (exponent_bits + mantissa_bits)) % 2 != 0 ? -magnitude : magnitude;
}

// As bitsandbytes' create_normal_map gives them in f32, its FP4 values before they are divided by
// 12, and kvalues_iq4nl of ggml.
inline constexpr double kNF4[16] = {-1.0,
                                    -0.6961928009986877F,
                                    -0.5250730514526367F,
                                    -0.39491748809814453F,
                                    -0.28444138169288635F,
                                    -0.18477343022823334F,
                                    -0.09105003625154495F,
                                    0.0,
                                    0.07958029955625534F,
                                    0.16093020141124725F,
                                    0.24611230194568634F,
                                    0.33791524171829224F,
                                    0.44070982933044434F,
                                    0.5626170039176941F,
                                    0.7229568362236023F,
                                    1.0};
inline constexpr double kTwelfths[8] = {0, 0.0625, 8, 12, 4, 6, 2, 3};
inline constexpr int kIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};

/// The value of a code, from the formats' definitions.
inline double value_of(WeightElement element, unsigned code) {
  switch (element) {
    case WeightElement::kE4M3:
      return (code & 0x7fu) == 0x7fu ? std::numeric_limits<double>::quiet_NaN()
                                     : small_float(code, 4, 3);
    case WeightElement::kInt8:
      return code < 128 ? code : static_cast<double>(code) - 256.0;
    case WeightElement::kInt4:
      return code % 16 < 8 ? code % 16 : static_cast<double>(code % 16) - 16.0;
    case WeightElement::kE2M1:
      return small_float(code % 16, 2, 1);
    case WeightElement::kE5M2:
      return (code & 0x7cu) == 0x7cu ? std::numeric_limits<double>::quiet_NaN()
                                     : small_float(code, 5, 2);
    case WeightElement::kUInt4:
      return code % 16;
    case WeightElement::kNF4:
      return kNF4[code % 16];
    case WeightElement::kFP4:
      return static_cast<float>(kTwelfths[code % 8] / 12.0) * (code % 16 < 8 ? 1.0 : -1.0);
    case WeightElement::kIQ4:
      return kIQ4[code % 16];
    case WeightElement::kPlain:
      break;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// value_of from a table, for the loops of references.
inline double fast_value_of(WeightElement element, uint8_t code) {
  static const auto kValues = [] {
    std::vector<double> values(16 * 256);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = value_of(static_cast<WeightElement>(i / 256), static_cast<unsigned>(i % 256));
    return values;
  }();
  return kValues[static_cast<size_t>(element) * 256 + code];
}

/// Whether codes are looked up in a table whose code 0 is no zero: padding is then not zero either,
/// and meets inputs or outputs that do not exist.
inline bool is_book(WeightElement element) {
  return element == WeightElement::kNF4 || element == WeightElement::kIQ4;
}

/// Those that GPU kernels read, too.
inline const std::vector<WeightElement>& all_elements() {
  static const std::vector<WeightElement> all = {WeightElement::kE4M3, WeightElement::kInt8,
                                                 WeightElement::kInt4, WeightElement::kE2M1};
  return all;
}
inline const std::vector<WeightElement>& every_element() {
  static const std::vector<WeightElement> all = {
      WeightElement::kE4M3, WeightElement::kInt8, WeightElement::kInt4,
      WeightElement::kE2M1, WeightElement::kE5M2, WeightElement::kUInt4,
      WeightElement::kNF4,  WeightElement::kFP4,  WeightElement::kIQ4};
  return all;
}
inline const std::vector<ScaleType>& all_scale_types() {
  static const std::vector<ScaleType> all = {ScaleType::kF32, ScaleType::kF16, ScaleType::kBF16,
                                             ScaleType::kE8M0, ScaleType::kE4M3};
  return all;
}

/// Formats of an element with groups of these sizes, and without groups: one scale a group, with
/// and without zero points.
inline std::vector<WeightFormat> formats_of(WeightElement element,
                                            const std::vector<int64_t>& groups) {
  std::vector<WeightFormat> all;
  for (const bool output_scale : {false, true}) {
    all.push_back({.element = element, .output_scale = output_scale});
    for (const ScaleType scale : all_scale_types()) {
      for (const int64_t group : groups) {
        for (const bool zeros : {false, true})
          all.push_back({element, scale, group, zeros, output_scale});
      }
    }
  }
  return all;
}

/// The same, and with minimums, of one and of two levels.
inline std::vector<WeightFormat> every_format_of(WeightElement element,
                                                 const std::vector<int64_t>& groups) {
  std::vector<WeightFormat> all = formats_of(element, groups);
  for (const bool output_scale : {false, true}) {
    for (const ScaleType scale : all_scale_types()) {
      all.push_back({element, scale, groups.front(), /*zero_points=*/false, output_scale, true});
    }
    for (const int64_t group : {groups.front(), groups.back()}) {  // two levels
      const int64_t super = 4 * group;
      all.push_back({element, ScaleType::kInt8, group, false, output_scale, false, super});
      all.push_back({element, ScaleType::kInt8, group, true, output_scale, true, super});
    }
  }
  return all;
}

// ---- a matrix ----------------------------------------------------------------------------------

/// Which scales a random matrix gets.
enum class CodedScales : uint8_t {
  kAny,  ///< as many significant bits as the type has, 2^-3 .. 2^3
  /// So few significant bits that decoded weights are values of bf16: four, or where codes of 8
  /// bits or minimums need them all, one.
  kShort,
};

/// A coded matrix, not packed and packed.
struct CodedCase {
  PackedLayout layout;
  std::vector<uint8_t> codes{};        // [n, k]
  std::vector<float> scales{};         // [n, groups]
  std::vector<int8_t> zeros{};         // [n, groups], or empty
  std::vector<float> output_scales{};  // [n], or empty
  std::vector<float> minimums{};       // [n, groups], or empty
  std::vector<float> super_scales{};   // [n, super-groups], or empty
  std::vector<float> super_minimums{};
  ByteBuffer packed{};

  [[nodiscard]] int64_t groups() const {
    return layout.format.grouped() ? (layout.k + layout.format.group - 1) / layout.format.group : 0;
  }
  [[nodiscard]] CodedBlock block() const {
    return {.codes = codes.data(),
            .rows = layout.n,
            .cols = layout.k,
            .stride = layout.k,
            .scales = scales.data(),
            .zeros = zeros.data(),
            .output_scales = output_scales.data(),
            .minimums = minimums.data(),
            .super_scales = super_scales.data(),
            .super_minimums = super_minimums.data()};
  }
  [[nodiscard]] int64_t supers() const {
    const int64_t super = layout.format.super_group;
    return super > 0 ? (layout.k + super - 1) / super : 0;
  }
  /// @return what pack_coded_rows does
  [[nodiscard]] bool store() {
    packed = ByteBuffer(static_cast<size_t>(layout.bytes()));
    return pack_coded_rows(layout, block(), 0, packed.data());
  }

  [[nodiscard]] double code(int64_t row, int64_t k) const {
    return fast_value_of(layout.format.element, codes[static_cast<size_t>(row * layout.k + k)]);
  }
  [[nodiscard]] size_t group_at(int64_t row, int64_t k) const {
    return static_cast<size_t>(row * groups() + k / layout.format.group);
  }
  [[nodiscard]] double zero(int64_t row, int64_t k) const {
    return layout.format.zero_points ? zeros[group_at(row, k)] : 0.0;
  }
  [[nodiscard]] double scale(int64_t row, int64_t k) const {
    return layout.format.grouped() ? scales[group_at(row, k)] * super(super_scales, row, k) : 1.0;
  }
  [[nodiscard]] double minimum(int64_t row, int64_t k) const {
    return layout.format.minimums ? minimums[group_at(row, k)] * super(super_minimums, row, k)
                                  : 0.0;
  }
  /// What a group's factor is multiplied by.
  [[nodiscard]] double super(const std::vector<float>& factors, int64_t row, int64_t k) const {
    if (layout.format.super_group == 0) return 1.0;
    return factors[static_cast<size_t>(row * supers() + k / layout.format.super_group)];
  }
  [[nodiscard]] double output_scale(int64_t row) const {
    return layout.format.output_scale ? static_cast<double>(output_scales[static_cast<size_t>(row)])
                                      : 1.0;
  }
  /// (value - zero) * scale rounded to f32 once, less the minimum and rounded again: what a piece
  /// of the panel is decoded to. The sign of a zero is that of IEEE 754.
  [[nodiscard]] float decoded(int64_t row, int64_t k) const {
    const double code_less_zero =
        layout.format.zero_points ? code(row, k) - zero(row, k) : code(row, k);
    const auto product = static_cast<float>(less_zero(row, k, code_less_zero) * scale(row, k));
    if (!layout.format.minimums) return product;
    return static_cast<float>(static_cast<double>(product) - minimum(row, k));
  }
  /// A code less its zero point is rounded, too, where f32 does not hold the difference.
  [[nodiscard]] double less_zero(int64_t row, int64_t k, double difference) const {
    return zero(row, k) == 0.0 ? difference : static_cast<double>(static_cast<float>(difference));
  }
};

/// A scale that the type holds exactly.
inline float random_scale(SeededRng& rng, ScaleType type, CodedScales wanted = CodedScales::kAny) {
  const float power = std::ldexp(1.0F, static_cast<int>(rng.integer(-3, 3)));
  if (type == ScaleType::kE8M0) return power;
  if (type == ScaleType::kInt8) {
    return static_cast<float>(wanted == CodedScales::kShort ? rng.integer(1, 7)
                                                            : rng.integer(-128, 127));
  }
  if (wanted == CodedScales::kShort || type == ScaleType::kE4M3)
    return power * (1.0F + static_cast<float>(rng.integer(0, 7)) / 8.0F);
  const float any = power * rng.uniform(1.0F, 2.0F);
  return type == ScaleType::kF16    ? f16_to_f32(f32_to_f16(any))
         : type == ScaleType::kBF16 ? round_to_bf16(any)
                                    : any;
}

/// Random codes (no NaN), scales, zero points and output scales, packed.
inline CodedCase random_coded(SeededRng& rng, const PackedLayout& layout,
                              CodedScales wanted = CodedScales::kAny) {
  CodedCase c{.layout = layout};
  c.layout.dtype = DType::kF32;
  const WeightFormat& format = layout.format;
  const int64_t codes = int64_t{1} << bits_of(format.element);
  for (int64_t i = 0; i < layout.n * layout.k; ++i) {
    auto code = static_cast<uint8_t>(rng.integer(0, codes - 1));
    if (format.element == WeightElement::kE4M3 && (code & 0x7fu) == 0x7fu) code &= 0xf0u;
    if (format.element == WeightElement::kE5M2 && (code & 0x7cu) == 0x7cu) code &= 0xbfu;
    c.codes.push_back(code);
  }
  const bool powers =
      wanted == CodedScales::kShort && (format.minimums || format.element == WeightElement::kInt8 ||
                                        format.element == WeightElement::kIQ4);
  for (int64_t i = 0; i < layout.n * c.groups(); ++i) {
    const bool integer = format.scale == ScaleType::kInt8;
    c.scales.push_back(powers ? std::ldexp(1.0F, static_cast<int>(rng.integer(integer ? 0 : -3, 3)))
                              : random_scale(rng, format.scale, wanted));
    const bool nibbles = bits_of(format.element) == 4;
    if (format.zero_points) {
      c.zeros.push_back(static_cast<int8_t>(nibbles ? rng.integer(-8, 7) : rng.integer(-128, 127)));
    }
  }
  for (int64_t i = 0; format.minimums && i < layout.n * c.groups(); ++i)
    c.minimums.push_back(powers ? c.scales[static_cast<size_t>(i)] *
                                      static_cast<float>(rng.integer(0, 15))
                                : random_scale(rng, format.scale, wanted));
  for (int64_t i = 0; i < layout.n * c.supers(); ++i) {
    c.super_scales.push_back(
        random_scale(rng, powers ? ScaleType::kE8M0 : ScaleType::kF16, wanted));
    if (!format.minimums) continue;
    c.super_minimums.push_back(powers ? c.super_scales.back()
                                      : random_scale(rng, ScaleType::kF16, wanted));
  }
  for (int64_t i = 0; format.output_scale && i < layout.n; ++i)
    c.output_scales.push_back(random_scale(rng, ScaleType::kF32, wanted));
  (void)c.store();
  return c;
}

inline std::string format_name(const WeightFormat& format) {
  std::string name = to_string(format);
  for (char& letter : name) {
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '_';
  }
  return name;
}

}  // namespace gantry::test
