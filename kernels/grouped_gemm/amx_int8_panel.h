#pragma once

// The AMX kernel of coded panels and rows of int8, over a tile type and over what surrounds the
// tiles, so that the same code runs on real tiles and on emulated ones. Like panel_gemm.h: included
// by files compiled for one instruction set, nothing of ours inside.

#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::amx_int8 {

/// Tile registers 0..3 hold sums, 4 and 5 rows of x, 6 and 7 weights.
///
/// A `Tiles` type has
///   void configure(int rows_low, int rows_high, int depth);   tiles 0, 1, 4 have rows_low rows
///       (1..16), tiles 2, 3, 5 rows_high (at least 1), tiles 6 and 7 depth / 4; tiles 4 and 5 have
///       depth bytes a row, the others 64
///   template <int T> void zero();
///   template <int T> void load(const std::byte* base, int64_t stride);
///   template <int T> void store(int32_t* base, int64_t stride_bytes);
///   template <int C, int A, int B> void dot_int8();   C += A B, signed bytes, see TDPBSSD
///
/// An `Ops` type has
///   static void decode(const PanelGemm& call, int64_t k, int64_t count, std::byte* out);
///       codes of 4 bits as signed bytes (FP4 doubled) in the order of an int8 panel, every 8 k in
///       the order of Int8RowTail
///   static void add_group(const GroupSums& sums);
///   static void finish(const PanelGemm& call, int64_t row, int64_t rows);   C times the scales of
///       rows and outputs

/// The sums of one group of k: C[row + r, l] (+)= scale[l] * (sums[r, l] - zero[l] * x sum of r).
struct GroupSums {
  const PanelGemm& call;
  int64_t row;
  int64_t rows;
  int64_t group;
  const int32_t* sums;  ///< [rows, 32]; 64-byte aligned
};

/// Weights decoded at once: they stay in the L1 cache.
inline constexpr int64_t kPieceDepth = 512;
inline constexpr int64_t kMaxBlock = 32;

/// k of one tile product: the most that divides a group, whose depth is a multiple of 8.
inline int64_t step_of(int64_t depth) {
  int64_t step = 64;
  while (depth % step != 0)
    step -= 8;
  return step;
}

template <typename Tiles, typename Ops>
void block(Tiles& tiles, const PanelGemm& call, int64_t row, int64_t rows) {
  const CodedPanel& panel = *call.coded;
  const bool in_bytes = panel.format.element == WeightElement::kInt8;
  const int64_t group = panel.format.scale != ScaleType::kNone ? panel.format.group : call.k;
  const int64_t stride = call.x_stride;
  const bool high = rows > 16;
  alignas(64) std::byte piece[kPieceDepth * 32];
  alignas(64) int32_t sums[kMaxBlock * 32];
  int64_t index = 0;
  for (int64_t begin = 0; begin < call.k; begin += group, ++index) {
    const int64_t end = begin + group < call.k ? begin + group : call.k;
    const int64_t step = step_of(end - begin);
    const int64_t most = kPieceDepth / step * step;
    tiles.configure(static_cast<int>(high ? 16 : rows), static_cast<int>(high ? rows - 16 : 1),
                    static_cast<int>(step));
    tiles.template zero<0>();
    tiles.template zero<1>();
    tiles.template zero<2>();
    tiles.template zero<3>();
    for (int64_t k = begin; k < end; k += most) {
      const int64_t count = end - k < most ? end - k : most;
      const std::byte* weights = piece;
      if (in_bytes) {
        weights = call.panel + panel.codes + k * 32;
      } else {
        Ops::decode(call, k, count, piece);
      }
      const std::byte* x = call.x + row * stride + k;
      for (int64_t i = 0; i < count; i += step, weights += step * 32) {
        tiles.template load<4>(x + i, stride);
        tiles.template load<6>(weights, 128);
        tiles.template dot_int8<0, 4, 6>();
        tiles.template load<7>(weights + 64, 128);
        tiles.template dot_int8<1, 4, 7>();
        if (!high) continue;
        tiles.template load<5>(x + i + 16 * stride, stride);
        tiles.template dot_int8<2, 5, 6>();
        tiles.template dot_int8<3, 5, 7>();
      }
    }
    tiles.template store<0>(sums, 128);
    tiles.template store<1>(sums + 16, 128);
    if (high) {
      tiles.template store<2>(sums + 16 * 32, 128);
      tiles.template store<3>(sums + 16 * 32 + 16, 128);
    }
    Ops::add_group({call, row, rows, index, sums});
  }
  Ops::finish(call, row, rows);
}

template <typename Tiles, typename Ops>
void run(Tiles& tiles, const PanelGemm& call) {
  for (int64_t row = 0; row < call.num_rows; row += kMaxBlock) {
    const int64_t left = call.num_rows - row;
    block<Tiles, Ops>(tiles, call, row, left < kMaxBlock ? left : kMaxBlock);
  }
}

}  // namespace gantry::amx_int8
