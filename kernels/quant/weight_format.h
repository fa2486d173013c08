#pragma once

// Plain data: files that are compiled for one instruction set include this (and call none of its
// functions).

#include <cstdint>

namespace gantry {

/// One element of a weight matrix as kernels store it.
enum class WeightElement : uint8_t {
  kPlain,  ///< f32, f16 or bf16: not coded
  kE4M3,   ///< FP8: 1 sign, 4 exponent, 3 mantissa bits; a byte each
  kInt8,   ///< two's complement; a byte each
  kInt4,   ///< two's complement, -8 .. 7; half a byte each
  kE2M1,   ///< FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; half a byte each
  kE5M2,   ///< FP8: 1 sign, 5 exponent, 2 mantissa bits; a byte each
  kUInt4,  ///< 0 .. 15; half a byte each
  // Looked up (code_books.h), half a byte each:
  kNF4,
  kFP4,
  kIQ4,
};

/// How a scale of a group is stored.
enum class ScaleType : uint8_t {
  kNone,
  kF32,
  kF16,
  kBF16,
  kE8M0,
  kE4M3,
  kInt8,  ///< an integer, multiplied by the f16 super-scale of its super-group
};

/// What kernels know of a weight matrix W[n, k]:
///
///   W[o, i] = ((value(code[o, i]) - zero[o, g]) * scale[o, g] - minimum[o, g]) * output_scale[o]
///
/// with g = i / group, where a factor that the format does not have is 1, and a missing zero point
/// or minimum 0. Integer scales and minimums have two levels (ggml's K formats): scale[o, g] is
/// code * super_scale[o, i / super_group], exact in f32. Every output has its own scales, so that
/// blocks of any height, two projections side by side and shards that cut blocks are all the same
/// to a kernel.
struct WeightFormat {
  WeightElement element = WeightElement::kPlain;
  ScaleType scale = ScaleType::kNone;
  int64_t group = 0;          ///< inputs of one scale, a multiple of 8; 0 without group scales
  bool zero_points = false;   ///< i8, one beside every group scale
  bool output_scale = false;  ///< f32
  bool minimums = false;      ///< one beside every group scale, in its type, with super-scales too
  int64_t super_group = 0;    ///< inputs of one super-scale with kInt8 scales: group * 2^n; else 0

  [[nodiscard]] constexpr bool coded() const noexcept { return element != WeightElement::kPlain; }
  [[nodiscard]] constexpr bool grouped() const noexcept { return scale != ScaleType::kNone; }
  /// Kernels want the sums of a row's values over each group.
  [[nodiscard]] constexpr bool needs_sums() const noexcept { return zero_points || minimums; }
  friend constexpr bool operator==(const WeightFormat&, const WeightFormat&) = default;
};

/// Bits of one code.
constexpr int bits_of(WeightElement element) noexcept {
  switch (element) {
    case WeightElement::kInt4:
    case WeightElement::kE2M1:
    case WeightElement::kUInt4:
    case WeightElement::kNF4:
    case WeightElement::kFP4:
    case WeightElement::kIQ4:
      return 4;
    default:
      return 8;
  }
}

/// Inputs that one 64-byte line of codes covers, for 16 outputs: the smallest step of a kernel.
constexpr int64_t line_depth(WeightElement element) noexcept {
  return bits_of(element) == 4 ? 8 : 4;
}

constexpr int64_t size_of(ScaleType type) noexcept {
  switch (type) {
    case ScaleType::kNone:
      return 0;
    case ScaleType::kF32:
      return 4;
    case ScaleType::kF16:
    case ScaleType::kBF16:
      return 2;
    case ScaleType::kE8M0:
    case ScaleType::kE4M3:
    case ScaleType::kInt8:
      return 1;
  }
  return 0;
}

/// Where the sections of a coded panel stand (see PackedLayout), and what is in them.
struct CodedPanel {
  WeightFormat format;
  int64_t num_groups = 0;   ///< of the padded k
  int64_t scale_bytes = 0;  ///< of one group's 32 scales or minimums
  int64_t num_supers = 0;   ///< super-groups of the padded k
  int super_shift = 0;      ///< group g is in super-group g >> super_shift
  int64_t scales = 0;       ///< bytes from the start of the panel
  int64_t zeros = 0;
  int64_t minimums = 0;
  int64_t super_scales = 0;    ///< [num_supers, 32] f16
  int64_t super_minimums = 0;  ///< the same
  int64_t output_scales = 0;
  int64_t codes = 0;
  int64_t bytes = 0;  ///< of the whole panel, a multiple of 64
};

}  // namespace gantry
