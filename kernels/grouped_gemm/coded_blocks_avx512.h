#pragma once

// How the rows of a call are split over kernels that decode codes once for a few rows. For files
// compiled for AVX-512: everything here has internal linkage.

#include <cstdint>

#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::avx512 {
namespace {

constexpr int kMaxRowBlock = 12;
// Beside the sums of the group there are registers for this many rows' sums of all groups; more
// rows keep those in C.
constexpr int kRowsWithTotals = 5;

// Multiplies as many rows as its place in the list says, from `row` on.
using RowBlock = void (*)(const PanelGemm& call, int64_t row);

// Runs blocks of even sizes. In groups of less than `narrow` inputs they are small: moving sums to
// and from C after each group costs more than decoding again for the next few rows (16 rows in the
// L2 cache, Zen 4, share of the dot products' peak with 12 and with 5 at once: nvfp4 0.51 and 0.82,
// int4 in groups of 64 0.82 and 0.88, of 128 0.92 and 0.91, e4m3 in blocks 0.87 and 0.83).
void run_blocks(const PanelGemm& call, const RowBlock (&blocks)[kMaxRowBlock], int64_t narrow) {
  const WeightFormat& format = call.coded->format;
  const bool small = format.scale != ScaleType::kNone && format.group < narrow;
  const int64_t most = small ? kRowsWithTotals : kMaxRowBlock;
  int64_t left = (call.num_rows + most - 1) / most;
  for (int64_t row = 0; row < call.num_rows; --left) {
    const int64_t rows = (call.num_rows - row + left - 1) / left;
    blocks[rows - 1](call, row);
    row += rows;
  }
}

}  // namespace
}  // namespace gantry::avx512
