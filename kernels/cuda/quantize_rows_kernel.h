#pragma once

// Rows of e4m3 for WgmmaGemm: gathered from the batch, or made of the rows between the two GEMMs.

#include <cstdint>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/launch_shape.h"
#include "kernels/cuda/warp_ops.h"

namespace gantry {

/// Quantizes rows to e4m3 with the formulas of `quantize_row` (kernels/quant/quantize_rows.h):
/// kFp8Group of 128 columns, or kFp8Token. A warp quantizes 128 columns of a row, or a whole row.
///
///   codes[row, k] = e4m3(x / s),  x ~ codes * s
struct QuantizeExpertRows {
  static constexpr int kWarps = 4;
  static constexpr int kGroup = 128;

  // One of: rows of the batch,
  const float* x = nullptr;             ///< [T, k]
  const int32_t* row_choice = nullptr;  ///< [rows] of RowPlan
  const float* choice_scale = nullptr;  ///< [C] or null for 1
  int64_t top_k = 1;
  // or bf16 rows in the order of row_element.
  const uint16_t* rows = nullptr;

  const int32_t* totals;  ///< of RowPlan
  int64_t k;              ///< columns; those from here to padded_k become 0
  int64_t padded_k;
  int64_t max_rows;    ///< rows that there is memory for
  bool whole_row;      ///< one scale a row: max(a / 448, 1 / (448 * 512)); else max(a, 1e-10) / 448
  bool powers_of_two;  ///< of groups: scales are rounded up
  uint8_t* codes;      ///< in the order of row8_element
  float* scales;       ///< [num_groups(), max_rows]

  [[nodiscard]] GANTRY_HD int64_t num_groups() const {
    return whole_row ? 1 : ceil_div(padded_k, int64_t{kGroup});
  }
  [[nodiscard]] LaunchShape launch_shape() const {
    return {ceil_div(max_rows * num_groups(), int64_t{kWarps}), kWarps * 32, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int lane = m.thread() % 32;
    const int64_t unit = m.block() * kWarps + m.thread() / 32;
    const int64_t row = unit % max_rows;
    const int64_t group = unit / max_rows;
    if (group >= num_groups() || row >= totals[0]) return;  // whole warps
    const int64_t begin = group * kGroup;
    const int64_t end = whole_row || begin + kGroup > padded_k ? padded_k : begin + kGroup;
    const float* source = nullptr;
    float factor = 1.0F;
    if (rows == nullptr) {
      const int32_t choice = row_choice[row];
      if (choice >= 0) {
        source = x + choice / top_k * k;
        if (choice_scale != nullptr) factor = choice_scale[choice];
      }
    }
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
    largest = warp_max_bits(m, largest);
    const float scale = scale_of(bits_to_f32(static_cast<uint32_t>(largest)));
    for (int64_t first = begin; first < end; first += kGroup) {
      if (column_of(first, lane) >= end) continue;
      float values[4];
      load(source, factor, row, first, lane, values);
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i)
        word |= f32_to_e4m3_bits(values[i] / scale) << (8 * i);
      *reinterpret_cast<uint32_t*>(codes + row8_element(padded_k, row, column_of(first, lane))) =
          word;
    }
    if (lane == 0) scales[group * max_rows + row] = scale;
  }

 private:
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
    if (whole_row) {
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
