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
    case WeightElement::kPlain:
      break;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// value_of from a table, for the loops of references.
inline double fast_value_of(WeightElement element, uint8_t code) {
  static const auto kValues = [] {
    std::vector<double> values(8 * 256);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = value_of(static_cast<WeightElement>(i / 256), static_cast<unsigned>(i % 256));
    return values;
  }();
  return kValues[static_cast<size_t>(element) * 256 + code];
}

inline const std::vector<WeightElement>& all_elements() {
  static const std::vector<WeightElement> all = {WeightElement::kE4M3, WeightElement::kInt8,
                                                 WeightElement::kInt4, WeightElement::kE2M1};
  return all;
}
inline const std::vector<ScaleType>& all_scale_types() {
  static const std::vector<ScaleType> all = {ScaleType::kF32, ScaleType::kF16, ScaleType::kBF16,
                                             ScaleType::kE8M0, ScaleType::kE4M3};
  return all;
}

/// Every format of an element with groups of these sizes, and without groups.
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

// ---- a matrix ----------------------------------------------------------------------------------

/// Which scales a random matrix gets.
enum class CodedScales : uint8_t {
  kAny,    ///< as many significant bits as the type has, 2^-3 .. 2^3
  kShort,  ///< four significant bits: decoded weights are values of bf16
};

/// A coded matrix, not packed and packed.
struct CodedCase {
  PackedLayout layout;
  std::vector<uint8_t> codes{};        // [n, k]
  std::vector<float> scales{};         // [n, groups]
  std::vector<int8_t> zeros{};         // [n, groups], or empty
  std::vector<float> output_scales{};  // [n], or empty
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
            .output_scales = output_scales.data()};
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
    return layout.format.grouped() ? static_cast<double>(scales[group_at(row, k)]) : 1.0;
  }
  [[nodiscard]] double output_scale(int64_t row) const {
    return layout.format.output_scale ? static_cast<double>(output_scales[static_cast<size_t>(row)])
                                      : 1.0;
  }
  /// (value - zero) * scale rounded to f32 once: what a piece of the panel is decoded to. The sign
  /// of a zero is that of IEEE 754.
  [[nodiscard]] float decoded(int64_t row, int64_t k) const {
    const double code_less_zero =
        layout.format.zero_points ? code(row, k) - zero(row, k) : code(row, k);
    return static_cast<float>(code_less_zero * scale(row, k));
  }
};

/// A scale that the type holds exactly.
inline float random_scale(SeededRng& rng, ScaleType type, CodedScales wanted = CodedScales::kAny) {
  const float power = std::ldexp(1.0F, static_cast<int>(rng.integer(-3, 3)));
  if (type == ScaleType::kE8M0) return power;
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
    c.codes.push_back(code);
  }
  for (int64_t i = 0; i < layout.n * c.groups(); ++i) {
    c.scales.push_back(random_scale(rng, format.scale, wanted));
    const bool nibbles = bits_of(format.element) == 4;
    if (format.zero_points) {
      c.zeros.push_back(static_cast<int8_t>(nibbles ? rng.integer(-8, 7) : rng.integer(-128, 127)));
    }
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
