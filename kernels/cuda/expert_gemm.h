#pragma once

// What the grouped GEMM kernels share: their parameters, and what becomes of a tile of sums.

#include <cstddef>
#include <cstdint>

#include "kernels/activation/activation_math.h"
#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/plan_kernel.h"
#include "kernels/cuda/weight_fragments.h"

namespace gantry {

/// One of the two GEMMs of all experts. Plain data, passed to the kernel by value.
///
///   activated: rows[r, j] = activation(sums of gate j, of up j), rounded to bf16 or f16
///   else:      y[r, o] = sum + bias, f32
struct ExpertGemm {
  const std::byte* slots = nullptr;  ///< device slots
  int64_t slot_stride = 0;
  int64_t matrix_offset = 0;  ///< bytes from the start of a slot
  int64_t bias_offset = -1;   ///< f32 [n]; -1: none
  DeviceMatrix matrix = {};
  const uint16_t* x = nullptr;  ///< rows in the order of row_element, of matrix.padded_k columns
  const uint8_t* x8 = nullptr;  ///< or rows of e4m3 in that of row8_element, WgmmaMath::kRows8
  // Of rows of codes (QuantizeExpertRows):
  const float* x_scales = nullptr;   ///< [x_groups, x_scale_stride] of each group and row, or null
  int64_t x_groups = 0;              ///< 1: of the whole row; else of 128 k each
  int64_t x_scale_stride = 0;        ///< a multiple of 4: rows
  const TokenTile* tiles = nullptr;  ///< of RowPlan; null: dense_rows rows of slot 0
  const int32_t* totals = nullptr;   ///< of RowPlan
  int64_t dense_rows = 0;
  int64_t max_tiles = 0;  ///< token tiles at most
  bool activated = false;
  bool f16 = false;  ///< rows are f16, else bf16
  ActivationSpec activation = {};
  uint16_t* rows =
      nullptr;         ///< activated: in the order of row_element, matrix.padded_outputs() columns
  float* y = nullptr;  ///< else: [rows, n]

  [[nodiscard]] GANTRY_DEVICE int64_t num_tiles(int tile_rows) const {
    return tiles != nullptr ? totals[1] : ceil_div(dense_rows, int64_t{tile_rows});
  }
  [[nodiscard]] GANTRY_DEVICE TokenTile tile(int64_t index, int tile_rows) const {
    if (tiles != nullptr) return tiles[index];
    const int64_t first = index * tile_rows;
    const int64_t left = dense_rows - first;
    return {0, static_cast<int32_t>(first),
            static_cast<int32_t>(left < tile_rows ? left : tile_rows)};
  }
  [[nodiscard]] GANTRY_DEVICE const std::byte* matrix_of(int32_t slot) const {
    return slots + slot * slot_stride + matrix_offset;
  }

  /// What a lane needs of a weight tile to finish its sums: of its two rows.
  struct Outputs {
    int64_t tile;
    int64_t row[2];  ///< of W, -1 for padding
    float scale[2];
    float bias[2];
  };
  GANTRY_DEVICE Outputs outputs_of(int32_t slot, int64_t weight_tile, int lane) const {
    Outputs outputs{weight_tile, {}, {1.0F, 1.0F}, {}};
    GANTRY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int r = lane / 4 + 8 * half;
      const int64_t row = matrix.row_at(weight_tile, r);
      outputs.row[half] = row;
      if (matrix.output_scale) {
        outputs.scale[half] = *reinterpret_cast<const float*>(
            matrix_of(slot) + matrix.output_scales + (weight_tile * kTileRows + r) * 4);
      }
      if (bias_offset >= 0 && row >= 0) {
        outputs.bias[half] =
            reinterpret_cast<const float*>(slots + slot * slot_stride + bias_offset)[row];
      }
    }
    return outputs;
  }

  /// Scales, biases, activation and store of one mma tile: c[e] of mma_c_place, tokens
  /// first_row + 8 * column_tile and on.
  GANTRY_DEVICE void finish(const TokenTile& tokens, const Outputs& outputs, int column_tile,
                            int lane, const float (&c)[4]) const {
    GANTRY_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int token = 8 * column_tile + lane % 4 * 2 + j;
      const float row_scale = row_scale_of(tokens.first_row + token);
      const float first = c[j] * row_scale * outputs.scale[0] + outputs.bias[0];
      const float second = c[2 + j] * row_scale * outputs.scale[1] + outputs.bias[1];
      if (activated) {
        store_activated(tokens, outputs.tile, token, lane, first, second);
      } else if (token < tokens.num_rows) {
        store_sums(tokens, outputs, token, first, second);
      }
    }
  }

 private:
  // Of codes with one scale a row; sums of groups, and of e4m3 rows, have been multiplied by
  // theirs.
  [[nodiscard]] GANTRY_DEVICE float row_scale_of(int64_t row) const {
    return x_scales != nullptr && x_groups == 1 && x8 == nullptr ? x_scales[row] : 1.0F;
  }

  GANTRY_DEVICE void store_sums(const TokenTile& tokens, const Outputs& outputs, int token,
                                float first, float second) const {
    float* target = y + (tokens.first_row + token) * matrix.n;
    if (outputs.row[0] >= 0) target[outputs.row[0]] = first;
    if (outputs.row[1] >= 0) target[outputs.row[1]] = second;
  }

  // Padding of the outputs is stored too, as zeros: it is the next matrix' k.
  GANTRY_DEVICE void store_activated(const TokenTile& tokens, int64_t weight_tile, int token,
                                     int lane, float first, float second) const {
    const int64_t row = tokens.first_row + token;
    if (matrix.gated) {
      const int64_t neuron = weight_tile * 8 + lane / 4;
      store_row(row, neuron, activation_math::activate(activation, first, second));
      return;
    }
    const int64_t neuron = weight_tile * kTileRows + lane / 4;
    store_row(row, neuron, activation_math::activate(activation, first, 0.0F));
    store_row(row, neuron + 8, activation_math::activate(activation, second, 0.0F));
  }

  GANTRY_DEVICE void store_row(int64_t row, int64_t neuron, float value) const {
    if (neuron >= matrix.num_outputs()) value = 0.0F;
    rows[row_element(matrix.padded_outputs(), row, neuron)] =
        static_cast<uint16_t>(f16 ? f32_to_f16_bits(value) : f32_to_bf16_bits(value));
  }
};

/// `add_scaled` of rows of codes with scales of 128 k, for the sums of columns of 8 tokens from
/// `first_column` of the tile on. @param k16 the last step of the sums, of 16 k
template <int kColumns>
GANTRY_DEVICE void add_scaled_rows(const ExpertGemm& gemm, const TokenTile& tokens, int k16,
                                   int first_column, int lane, const GroupFactors& factors,
                                   float (&partial)[kColumns][4], float (&sums)[kColumns][4]) {
  const float* scales = gemm.x_scales + k16 / 8 * gemm.x_scale_stride + tokens.first_row +
                        int64_t{8} * first_column + lane % 4 * 2;
  GANTRY_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    if ((first_column + c) * 8 >= tokens.num_rows) continue;
    GANTRY_UNROLL
    for (int e = 0; e < 4; ++e) {
      sums[c][e] += partial[c][e] * (factors.scale[e / 2] * scales[8 * c + e % 2]);
      partial[c][e] = 0.0F;
    }
  }
}

template <DeviceElement kElement, class Machine>
GANTRY_DEVICE void mma(Machine& m, float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                       uint32_t b1) {
  if constexpr (kElement == DeviceElement::kF16) {
    m.mma_f16(c, a, b0, b1);
  } else {
    m.mma_bf16(c, a, b0, b1);
  }
}

}  // namespace gantry
