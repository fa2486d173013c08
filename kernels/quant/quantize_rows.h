#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// How the rows that enter a GEMM are quantized: the codes, and where their scales come from.
enum class RowQuantization : uint8_t {
  kNone,
  kFp8Static,    ///< e4m3, one scale of the checkpoint
  kFp8Token,     ///< e4m3, one scale a row
  kFp8Group,     ///< e4m3, one scale for group_size columns of a row
  kInt8Static,   ///< int8, one scale of the checkpoint
  kInt8Token,    ///< int8, one scale a row
  kMxFp8,        ///< e4m3, one power of two for group_size columns
  kMxFp4,        ///< e2m1, one power of two for group_size columns
  kNvFp4Static,  ///< e2m1, an e4m3 scale for group_size columns, a global scale of the checkpoint
  kNvFp4Token,   ///< the same with a global scale a row
};

/// A quantization of rows.
struct RowFormat {
  RowQuantization kind = RowQuantization::kNone;
  int64_t group_size = 0;            ///< columns a scale covers; 0: the row, or static
  bool power_of_two_scales = false;  ///< kFp8Group: scales rounded up (scale_fmt ue8m0)

  [[nodiscard]] bool quantizes() const noexcept { return kind != RowQuantization::kNone; }
  /// One scale of the checkpoint a matrix.
  [[nodiscard]] bool is_static() const noexcept {
    return kind == RowQuantization::kFp8Static || kind == RowQuantization::kInt8Static ||
           kind == RowQuantization::kNvFp4Static;
  }
  /// What one column becomes depends on the magnitude of all others of its row.
  [[nodiscard]] bool needs_whole_row() const noexcept {
    return kind == RowQuantization::kFp8Token || kind == RowQuantization::kInt8Token ||
           kind == RowQuantization::kNvFp4Token;
  }
  /// Some scale follows from the row itself.
  [[nodiscard]] bool needs_amax() const noexcept {
    return quantizes() && kind != RowQuantization::kFp8Static &&
           kind != RowQuantization::kInt8Static;
  }
  /// Groups of a row of `columns`; the last one may be shorter.
  [[nodiscard]] int64_t num_groups(int64_t columns) const noexcept {
    return group_size > 0 ? (columns + group_size - 1) / group_size : 1;
  }
  friend bool operator==(const RowFormat&, const RowFormat&) = default;
};

/// "fp8 e4m3, dynamic, groups of 128"
std::string_view to_string(RowQuantization kind) noexcept;

/// Part of a row: columns [first_column, first_column + values.size()) of the whole one. Groups
/// start at multiples of group_size of the whole row.
struct RowPart {
  std::span<float> values;
  int64_t first_column = 0;
};

/// Raises amax[g] to the largest magnitude of this part's columns in group g; NaN counts as larger
/// than everything.
/// @param amax [num_groups(whole row)], not negative
void raise_group_amax(const RowFormat& format, const RowPart& row, std::span<float> amax) noexcept;

/// Replaces values by what they are worth once quantized and dequantized, in f32 ("fake
/// quantization"): a GEMM of f32 then computes what a GEMM of codes and scales means.
///
/// With s the scale, a the group's largest magnitude, and q() the rounding to the nearest code,
/// ties to even, saturating:
///
/// | kind         | s                                             | result                       |
/// |--------------|-----------------------------------------------|------------------------------|
/// | kFp8Static   | static_scale                                  | e4m3(x / s) * s              |
/// | kFp8Token    | max(a / 448, 1 / (448 * 512)), a of the row   | e4m3(x / s) * s              |
/// | kFp8Group    | max(a, 1e-10) / 448                           | e4m3(x / s) * s              |
/// | - power of 2 | 2^ceil(log2(max(a, 1e-10) / 448))             | e4m3(x / s) * s              |
/// | kInt8Static  | static_scale                                  | int8(x / s) * s              |
/// | kInt8Token   | a / 127, a of the row                         | int8(x / s) * s; s = 0: 0    |
/// | kMxFp8       | 2^clamp(ceil(log2(max(a, FLT_MIN) / 448)))    | e4m3(x / s) * s              |
/// | kMxFp4       | 2^clamp(floor(log2(a rounded)) - 2)           | e2m1(x / s) * s              |
/// | kNvFp4Static | e4m3(g * (a * (1/6))), g = static_scale       | e2m1(x * (g / s)) * s / g    |
/// | kNvFp4Token  | the same with g = 448 * 6 / a of the row      | s = 0 or a = 0: 0            |
///
/// kMxFp4 rounds a to one mantissa bit, ties up, before the floor: 3.5 * 2^n and more count as
/// 2^(n + 2). Exponents are clamped to [-127, 127]. int8 saturates at -128 and 127. Logarithms are
/// exact here; vLLM's are f32, which can differ where a ratio is within 2 ulp above a power of two.
/// Where a dynamic group holds NaN or infinity, all of it becomes NaN; static scales saturate
/// infinity and keep NaN.
///
/// @param amax         [num_groups(whole row)] of raise_group_amax over the whole row, or empty:
///                     then `row` is the whole row
/// @param static_scale of the static kinds, else ignored
/// @source vllm-semantics 2: vLLM 0.32's dynamic_per_token_scaled_fp8_quant,
///         per_token_group_quant_fp8, scaled_int8_quant, _mxfp8_e4m3_quantize_torch and
///         ref_nvfp4_quant_dequant; Quark's "even" rule for MXFP4
void quantize_row(const RowFormat& format, const RowPart& row, std::span<const float> amax,
                  float static_scale) noexcept;

}  // namespace gantry
