#pragma once

// The AMX kernel over a tile type, so that the same code runs on real tiles and on emulated ones.
// Like panel_gemm.h: included by files compiled for one instruction set, nothing of ours inside.

#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::amx_panel {

/// Tile registers 0..3 hold sums, 4 and 5 rows of x, 6 and 7 weights.
///
/// A `Tiles` type has
///   void configure(int rows_low, int rows_high);   tiles 0, 1, 4 have rows_low rows (1..16),
///       tiles 2, 3, 5 rows_high (at least 1), tiles 6 and 7 sixteen; 64 bytes a row
///   template <int T> void zero();
///   template <int T> void load(const std::byte* base, int64_t stride);
///   template <int T> void stream(const std::byte* base, int64_t stride);   (non-temporal hint)
///   template <int T> void store(float* base, int64_t stride_bytes);
///   template <int C, int A, int B> void dot_bf16();   C += A B, see TDPBF16PS
///   void prefetch(const std::byte* line);

/// Bytes of 32 k of a panel: two tiles of weights.
inline constexpr int64_t kTileBytes = 2048;

template <typename Tiles>
void fetch_tile(Tiles& tiles, const std::byte* weights) {
  for (int64_t line = 0; line < kTileBytes; line += 64)
    tiles.prefetch(weights + line);
}

// Sums of 16 rows begin at zero, or where an earlier part of k left them.
template <int T, typename Tiles>
void begin_sums(Tiles& tiles, const PanelGemm& call, int64_t row, int64_t column) {
  if (call.accumulate) {
    tiles.template load<T>(reinterpret_cast<const std::byte*>(call.c + row * 32 + column), 128);
  } else {
    tiles.template zero<T>();
  }
}

// One block of up to 16 rows: 1 x 2 tiles.
template <typename Tiles>
void narrow_block(Tiles& tiles, const PanelGemm& call, int64_t row, bool prefetches) {
  begin_sums<0>(tiles, call, row, 0);
  begin_sums<1>(tiles, call, row, 16);
  const std::byte* x = call.x + row * call.x_stride;
  for (int64_t tile = 0; tile < call.k / 32; ++tile) {
    const std::byte* weights = call.panel + tile * kTileBytes;
    tiles.template load<4>(x + tile * 64, call.x_stride);
    tiles.template load<6>(weights, 128);
    tiles.template dot_bf16<0, 4, 6>();
    tiles.template load<7>(weights + 64, 128);
    tiles.template dot_bf16<1, 4, 7>();
    if (prefetches) fetch_tile(tiles, call.next + tile * kTileBytes);
  }
  tiles.template store<0>(call.c + row * 32, 128);
  tiles.template store<1>(call.c + row * 32 + 16, 128);
}

// 17 to 32 rows: 2 x 2 tiles; every tile of x and of the weights is used twice.
template <typename Tiles>
void wide_block(Tiles& tiles, const PanelGemm& call, int64_t row, bool prefetches) {
  begin_sums<0>(tiles, call, row, 0);
  begin_sums<1>(tiles, call, row, 16);
  begin_sums<2>(tiles, call, row + 16, 0);
  begin_sums<3>(tiles, call, row + 16, 16);
  const std::byte* x = call.x + row * call.x_stride;
  for (int64_t tile = 0; tile < call.k / 32; ++tile) {
    const std::byte* weights = call.panel + tile * kTileBytes;
    tiles.template load<4>(x + tile * 64, call.x_stride);
    tiles.template stream<6>(weights, 128);
    tiles.template dot_bf16<0, 4, 6>();
    tiles.template stream<7>(weights + 64, 128);
    tiles.template dot_bf16<1, 4, 7>();
    tiles.template load<5>(x + 16 * call.x_stride + tile * 64, call.x_stride);
    tiles.template dot_bf16<2, 5, 6>();
    tiles.template dot_bf16<3, 5, 7>();
    if (prefetches) fetch_tile(tiles, call.next + tile * kTileBytes);
  }
  tiles.template store<0>(call.c + row * 32, 128);
  tiles.template store<1>(call.c + row * 32 + 16, 128);
  tiles.template store<2>(call.c + (row + 16) * 32, 128);
  tiles.template store<3>(call.c + (row + 16) * 32 + 16, 128);
}

template <typename Tiles>
void run(Tiles& tiles, const PanelGemm& call) {
  for (int64_t row = 0; row < call.num_rows;) {
    const int64_t left = call.num_rows - row;
    const bool prefetches = row == 0 && call.next != nullptr;
    if (left > 16) {
      const int64_t rows = left < 32 ? left : 32;
      tiles.configure(16, static_cast<int>(rows - 16));
      wide_block(tiles, call, row, prefetches);
      row += rows;
    } else {
      tiles.configure(static_cast<int>(left), 1);
      narrow_block(tiles, call, row, prefetches);
      row += left;
    }
  }
}

}  // namespace gantry::amx_panel
