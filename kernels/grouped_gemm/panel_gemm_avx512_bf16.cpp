#include <immintrin.h>

#include <cstring>

#include "kernels/grouped_gemm/panel_gemm.h"

// The same blocks as the FMA file with vdpbf16ps: a pair of k an instruction, no widening. The
// instruction rounds after each product and treats denormal bf16 as zero.

namespace gantry::avx512 {
namespace {

constexpr int kMaxBlock = 12;
constexpr int64_t kPrefetchRows = 8;  // as in the FMA file

void fetch_line(const std::byte* line) { asm volatile("prefetcht1 %0" ::"m"(*line)); }

// Row r of a block is reached as start[r / 3] + (r % 3) * stride: an address that needs no register
// of its own.
// `next` is fetched into the L2 cache, kLines lines for each pair of k.
template <int kRows, int kLines>
void block(const PanelGemm& call, int64_t row, const std::byte* next) {
  constexpr int kStarts = (kRows + 2) / 3;
  __m512 sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    const float* c = call.c + (row + r) * 32;
    sums[r][0] = call.accumulate ? _mm512_load_ps(c) : _mm512_setzero_ps();
    sums[r][1] = call.accumulate ? _mm512_load_ps(c + 16) : _mm512_setzero_ps();
  }
  const int64_t stride = call.x_stride;
  const std::byte* start[kStarts];
  for (int i = 0; i < kStarts; ++i)
    start[i] = call.x + (row + 3 * i) * stride;
  const std::byte* panel = call.panel;
  const std::byte* end = panel + call.k * 64;
#pragma GCC unroll 1
  while (panel != end) {
#pragma GCC unroll 4
    for (int pair = 0; pair < 2; ++pair) {
      const auto w0 = (__m512bh)_mm512_load_si512(panel + pair * 128);
      const auto w1 = (__m512bh)_mm512_load_si512(panel + pair * 128 + 64);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        int bits;
        std::memcpy(&bits, start[r / 3] + (r % 3) * stride + pair * 4, 4);
        const auto input = (__m512bh)_mm512_set1_epi32(bits);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], input, w0);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], input, w1);
        // Written as assembly because the compiler would move all prefetches to one place.
        if (kLines > 0 && r == 1) fetch_line(next + pair * kLines * 64);
        if (kLines > 1 && r == kRows / 2 + 1) fetch_line(next + pair * kLines * 64 + 64);
      }
    }
    panel += 2 * 128;
    next += 2 * kLines * 64;
#pragma GCC unroll 4
    for (int i = 0; i < kStarts; ++i)
      start[i] += 2 * 4;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    _mm512_store_ps(call.c + (row + r) * 32, sums[r][0]);
    _mm512_store_ps(call.c + (row + r) * 32 + 16, sums[r][1]);
  }
}

using Block = void (*)(const PanelGemm&, int64_t, const std::byte*);

template <int kLines>
constexpr Block kBlocks[kMaxBlock] = {block<1, kLines>,  block<2, kLines>,  block<3, kLines>,
                                      block<4, kLines>,  block<5, kLines>,  block<6, kLines>,
                                      block<7, kLines>,  block<8, kLines>,  block<9, kLines>,
                                      block<10, kLines>, block<11, kLines>, block<12, kLines>};

}  // namespace

void panel_gemm_bf16_dot(const PanelGemm& call) noexcept {
  const bool fetches = call.next != nullptr && call.num_rows >= kPrefetchRows;
  int64_t blocks = (call.num_rows + kMaxBlock - 1) / kMaxBlock;
  const bool in_one = blocks == 1;  // else the last two blocks fetch one half each
  for (int64_t row = 0; row < call.num_rows; --blocks) {
    const int64_t rows = (call.num_rows - row + blocks - 1) / blocks;
    if (!fetches || blocks > 2) {
      kBlocks<0>[rows - 1](call, row, nullptr);
    } else if (in_one) {
      kBlocks<2>[rows - 1](call, row, call.next);
    } else {
      kBlocks<1>[rows - 1](call, row, call.next + (blocks == 1 ? call.k * 32 : 0));
    }
    row += rows;
  }
}

}  // namespace gantry::avx512
