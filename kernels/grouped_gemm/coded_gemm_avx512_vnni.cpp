// int8 panels by vpdpbusd, rows of int8: exact sums of products. The instruction multiplies
// unsigned by signed bytes, so weights go in with 128 added, and 128 times the row's sum, which
// came with the row, is taken off at the end.

#include <immintrin.h>

#include <cstring>

#include "kernels/grouped_gemm/fetch_codes_avx512.h"
#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::avx512 {
namespace {

constexpr int kMaxBlock = 12;

// Written as assembly because GCC 12 copies and spills the sums of the intrinsic from 9 rows on,
// which halves the speed.
void add_products(__m512i& sums, __m512i weights, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(x));
}

template <int kRows>
void block(const PanelGemm& call, int64_t row) {
  constexpr int kStarts = (kRows + 2) / 3;
  __m512i sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
    sums[r][0] = sums[r][1] = _mm512_setzero_si512();
  const int64_t stride = call.x_stride;
  const std::byte* start[kStarts];
  for (int i = 0; i < kStarts; ++i)
    start[i] = call.x + (row + 3 * i) * stride;
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
  const std::byte* line = call.panel + call.coded->codes;
  const std::byte* end = line + call.k / 4 * 128;
#pragma GCC unroll 1
  for (; line != end; line += 128) {
    fetch_ahead<kRows>(line);
    const __m512i w0 = _mm512_xor_si512(_mm512_load_si512(line), offset);
    const __m512i w1 = _mm512_xor_si512(_mm512_load_si512(line + 64), offset);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int four;
      std::memcpy(&four, start[r / 3] + (r % 3) * stride, 4);
      const __m512i x = _mm512_set1_epi32(four);
      add_products(sums[r][0], w0, x);
      add_products(sums[r][1], w1, x);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kStarts; ++i)
      start[i] += 4;
  }
  const auto* scales = call.panel + call.coded->output_scales;
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    Int8RowTail tail;
    std::memcpy(&tail, call.x + (row + r) * stride + call.x_sums, sizeof(tail));
    const __m512i shift = _mm512_set1_epi32(tail.sum * 128);
    const __m512 scale = _mm512_set1_ps(tail.scale);
#pragma GCC unroll 2  // an index that is not constant would keep the sums in memory
    for (int h = 0; h < 2; ++h) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][h], shift));
      _mm512_store_ps(call.c + (row + r) * 32 + h * 16,
                      _mm512_mul_ps(_mm512_mul_ps(sum, scale), _mm512_load_ps(scales + h * 64)));
    }
  }
}

using Block = void (*)(const PanelGemm&, int64_t);
constexpr Block kBlocks[kMaxBlock] = {block<1>, block<2>,  block<3>,  block<4>,
                                      block<5>, block<6>,  block<7>,  block<8>,
                                      block<9>, block<10>, block<11>, block<12>};

}  // namespace

void panel_gemm_int8_vnni(const PanelGemm& call) noexcept {
  int64_t blocks = (call.num_rows + kMaxBlock - 1) / kMaxBlock;
  for (int64_t row = 0; row < call.num_rows; --blocks) {
    const int64_t rows = (call.num_rows - row + blocks - 1) / blocks;
    kBlocks[rows - 1](call, row);
    row += rows;
  }
}

}  // namespace gantry::avx512
