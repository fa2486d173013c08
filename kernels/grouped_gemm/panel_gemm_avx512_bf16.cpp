#include <immintrin.h>

#include <cstring>

#include "kernels/grouped_gemm/panel_gemm.h"

// The same blocks as the FMA file with vdpbf16ps: a pair of k an instruction, no widening. The
// instruction rounds after each product and treats denormal bf16 as zero.

namespace gantry::avx512 {
namespace {

constexpr int kMaxBlock = 12;
constexpr int64_t kPrefetchRows = 8;  // as in the FMA file

template <int kRows>
void block(const PanelGemm& call, int64_t row, bool prefetches) {
  __m512 sums[kRows][2];
#pragma GCC unroll 12
  for (auto& line : sums)
    line[0] = line[1] = _mm512_setzero_ps();
  const std::byte* x = call.x + row * call.x_stride;
  const std::byte* next = call.next;
  for (int64_t tile = 0; tile < call.k / 32; ++tile) {
    const std::byte* panel = call.panel + tile * 2048;
    const std::byte* inputs = x + tile * 64;
#pragma GCC unroll 2
    for (int pair = 0; pair < 16; ++pair) {
      const auto w0 = (__m512bh)_mm512_load_si512(panel + pair * 128);
      const auto w1 = (__m512bh)_mm512_load_si512(panel + pair * 128 + 64);
      if (prefetches) {
        _mm_prefetch(reinterpret_cast<const char*>(next + pair * 128), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(next + pair * 128 + 64), _MM_HINT_T1);
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        int bits;
        std::memcpy(&bits, inputs + r * call.x_stride + pair * 4, 4);
        const auto input = (__m512bh)_mm512_set1_epi32(bits);
        sums[r][0] = _mm512_dpbf16_ps(sums[r][0], input, w0);
        sums[r][1] = _mm512_dpbf16_ps(sums[r][1], input, w1);
      }
    }
    next += 2048;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    _mm512_store_ps(call.c + (row + r) * 32, sums[r][0]);
    _mm512_store_ps(call.c + (row + r) * 32 + 16, sums[r][1]);
  }
}

}  // namespace

void panel_gemm_bf16_dot(const PanelGemm& call) noexcept {
  using Block = void (*)(const PanelGemm&, int64_t, bool);
  static constexpr Block kBlocks[kMaxBlock] = {block<1>, block<2>,  block<3>,  block<4>,
                                               block<5>, block<6>,  block<7>,  block<8>,
                                               block<9>, block<10>, block<11>, block<12>};
  const bool fetches = call.next != nullptr && call.num_rows >= kPrefetchRows;
  int64_t blocks = (call.num_rows + kMaxBlock - 1) / kMaxBlock;
  for (int64_t row = 0; row < call.num_rows; --blocks) {
    const int64_t rows = (call.num_rows - row + blocks - 1) / blocks;
    row += rows;
    const bool last = row == call.num_rows;
    kBlocks[rows - 1](call, row - rows, last && fetches);
  }
}

void probe_dot(int64_t steps) noexcept {
  __m512 sums[16] = {};
  const auto x = (__m512bh)_mm512_set1_epi16(0x3a80);
  for (int64_t i = 0; i < steps; ++i) {
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, x, x);
      asm volatile("" : "+v"(sum));
    }
  }
}

}  // namespace gantry::avx512
