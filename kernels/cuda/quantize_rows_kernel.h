#pragma once

// Rows of codes: gathered from the batch, or made of the rows between the two GEMMs.

#include <cstdint>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/launch_shape.h"
#include "kernels/cuda/warp_ops.h"
#include "kernels/quant/quantize_rows.h"

namespace gantry {

/// Quantizes rows with the formulas of `quantize_row` (kernels/quant/quantize_rows.h): kFp8Group of
/// 128 columns, kFp8Token, kFp8Static, kInt8Token, kInt8Static. A warp quantizes 128 columns of a
/// row, or a whole row where its scale follows from all of it.
///
///   codes[row, k] = e4m3(x / s) or int8(x / s),  x ~ codes * s
///
/// Codes are written as e4m3, for WgmmaGemm's products of e4m3, or as bf16, which holds every code
/// of either kind exactly: then every GEMM multiplies them, and sums take the scales.
struct QuantizeExpertRows {
  static constexpr int kWarps = 4;
  static constexpr int kGroup = 128;

  // One of: rows of the batch,
  const float* x = nullptr;             ///< [T, k]
  const float* choice_scale = nullptr;  ///< [C] or null for 1
  int64_t top_k = 1;
  // or bf16 rows in the order of row_element.
  const uint16_t* rows = nullptr;

  const int32_t* row_choice = nullptr;  ///< [rows] of RowPlan; with x and with static scales
  const int32_t* totals;                ///< of RowPlan
  int64_t k = 0;                        ///< columns; those from here to padded_k become 0
  int64_t padded_k = 0;
  int64_t max_rows;  ///< rows that there is memory for
  RowQuantization kind;
  bool powers_of_two = false;  ///< of kFp8Group: scales are rounded up
  // Of static kinds:
  const float* static_scales = nullptr;     ///< [slots], above 0
  const int32_t* topk_ids = nullptr;        ///< [C]
  const int32_t* expert_to_slot = nullptr;  ///< [ids]
  // One of
  uint8_t* codes = nullptr;     ///< e4m3, in the order of row8_element
  uint16_t* codes16 = nullptr;  ///< bf16, in the order of row_element
  float* scales;                ///< [num_groups(), max_rows]

  /// Scales of a row.
  [[nodiscard]] GANTRY_HD int64_t num_groups() const {
    return kind == RowQuantization::kFp8Group ? ceil_div(padded_k, int64_t{kGroup}) : 1;
  }
  [[nodiscard]] LaunchShape launch_shape() const {
    return {ceil_div(max_rows * num_units(), int64_t{kWarps}), kWarps * 32, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int lane = m.thread() % 32;
    const int64_t unit = m.block() * kWarps + m.thread() / 32;
    const int64_t row = unit % max_rows;
    const int64_t group = unit / max_rows;
    if (group >= num_units() || row >= totals[0]) return;  // whole warps
    const int64_t begin = group * kGroup;
    const int64_t end = one_unit() || begin + kGroup > padded_k ? padded_k : begin + kGroup;
    const float* source = nullptr;
    float factor = 1.0F;
    const int32_t choice = row_choice == nullptr ? -1 : row_choice[row];
    if (rows == nullptr && choice >= 0) {
      source = x + choice / top_k * k;
      if (choice_scale != nullptr) factor = choice_scale[choice];
    }
    const float scale = is_static() ? static_scale_of(choice)
                                    : scale_of(largest_of(m, source, factor, row, begin, end));
    // Rows of zeros have an int8 scale of 0, and zeros for codes.
    const float divisor = scale == 0.0F ? 1.0F : scale;
    for (int64_t first = begin; first < end; first += kGroup) {
      if (column_of(first, lane) >= end) continue;
      float values[4];
      load(source, factor, row, first, lane, values);
      for (float& value : values)
        value /= divisor;
      store(row, column_of(first, lane), values);
    }
    if (lane == 0 && (group == 0 || num_groups() > 1)) scales[group * max_rows + row] = scale;
  }

 private:
  [[nodiscard]] GANTRY_HD bool is_int8() const {
    return kind == RowQuantization::kInt8Static || kind == RowQuantization::kInt8Token;
  }
  [[nodiscard]] GANTRY_HD bool is_static() const {
    return kind == RowQuantization::kInt8Static || kind == RowQuantization::kFp8Static;
  }
  // Whether a warp has to see the whole row.
  [[nodiscard]] GANTRY_HD bool one_unit() const {
    return kind == RowQuantization::kInt8Token || kind == RowQuantization::kFp8Token;
  }
  [[nodiscard]] GANTRY_HD int64_t num_units() const {
    return one_unit() ? 1 : ceil_div(padded_k, int64_t{kGroup});
  }
  [[nodiscard]] GANTRY_DEVICE float static_scale_of(int32_t choice) const {
    return choice < 0 ? 1.0F : static_scales[expert_to_slot[topk_ids[choice]]];
  }

  template <class Machine>
  GANTRY_DEVICE float largest_of(Machine& m, const float* source, float factor, int64_t row,
                                 int64_t begin, int64_t end) const {
    const int lane = m.thread() % 32;
    // Magnitudes as integers, of which NaN is the largest.
    int32_t largest = 0;
    for (int64_t first = begin; first < end; first += kGroup) {
      float values[4];
      load(source, factor, row, first, lane, values);
      for (int i = 0; i < 4; ++i) {
        const auto bits = static_cast<int32_t>(f32_to_bits(values[i]) & 0x7fffffffu);
        largest = bits > largest ? bits : largest;
      }
    }
    return bits_to_f32(static_cast<uint32_t>(warp_max_bits(m, largest)));
  }

  GANTRY_DEVICE void store(int64_t row, int64_t column, const float (&values)[4]) const {
    if (codes != nullptr) {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i)
        word |= f32_to_e4m3_bits(values[i]) << (8 * i);
      *reinterpret_cast<uint32_t*>(codes + row8_element(padded_k, row, column)) = word;
      return;
    }
    uint32_t words[2] = {};
    for (int i = 0; i < 4; ++i) {
      const float code =
          is_int8() ? round_to_int8(values[i]) : e4m3_bits_to_f32(f32_to_e4m3_bits(values[i]));
      words[i / 2] |= f32_to_bf16_bits(code) << (i % 2 * 16);
    }
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<uint32_t*>(codes16 + row_element(padded_k, row, column + 8 * i)) = words[i];
  }

  // To the nearest integer, ties to even: 1.5 * 2^23 leaves no bits below 1. NaN stays NaN.
  [[nodiscard]] GANTRY_DEVICE static float round_to_int8(float value) {
    if (value < -128.0F) return -128.0F;
    if (value > 127.0F) return 127.0F;
    return (value + 12582912.0F) - 12582912.0F;
  }

  // A lane has four columns, which row8_element puts side by side: this, the next, and those 8 on.
  [[nodiscard]] GANTRY_DEVICE static int64_t column_of(int64_t first, int lane) {
    return first + lane / 4 * 16 + lane % 4 * 2;
  }

  GANTRY_DEVICE void load(const float* source, float factor, int64_t row, int64_t first, int lane,
                          float (&values)[4]) const {
    const int64_t column = column_of(first, lane);
    for (int i = 0; i < 4; ++i) {
      const int64_t at = column + i % 2 + i / 2 * 8;
      values[i] = 0.0F;
      if (at >= k) continue;
      if (rows != nullptr) {
        values[i] = bf16_bits_to_f32(rows[row_element(padded_k, row, at)]);
      } else if (source != nullptr) {
        values[i] = source[at] * factor;
      }
    }
  }

  template <class Machine>
  GANTRY_DEVICE static int32_t warp_max_bits(Machine& m, int32_t value) {
    for (int mask = 16; mask > 0; mask /= 2) {
      const int32_t other = m.shuffle_xor(value, mask);
      value = other > value ? other : value;
    }
    return value;
  }

  // Infinity and NaN make a row's, or a group's, every code NaN.
  [[nodiscard]] GANTRY_DEVICE float scale_of(float largest) const {
    if (!(largest <= 3.4028234663852886e38F)) return bits_to_f32(0x7fc00000u);
    if (is_int8()) return largest / 127.0F;
    if (one_unit()) {
      const float scale = largest / 448.0F;
      constexpr float kLeast = 1.0F / (448.0F * 512.0F);
      return scale > kLeast ? scale : kLeast;
    }
    const float scale = (largest > 1e-10F ? largest : 1e-10F) / 448.0F;
    if (!powers_of_two) return scale;
    const uint32_t bits = f32_to_bits(scale);  // normal: 1e-10 / 448 is
    return bits_to_f32((bits + 0x7fffffu) & 0x7f800000u);
  }
};

}  // namespace gantry
