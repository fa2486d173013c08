#include <immintrin.h>

#include "kernels/grouped_gemm/pack_pairs.h"

// 16 rows x 16 pairs at a time: a transpose of 16 x 16 dwords in registers, first within quarters
// of 4 x 4, then of the quarters.

namespace gantry::avx512 {
namespace {

// In each 128-bit lane: transposes 4 x 4 dwords of four vectors.
void transpose_lanes(__m512i (&v)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi32(v[0], v[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(v[2], v[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(low01, low23);
  v[1] = _mm512_unpackhi_epi64(low01, low23);
  v[2] = _mm512_unpacklo_epi64(high01, high23);
  v[3] = _mm512_unpackhi_epi64(high01, high23);
}

// Transposes 4 x 4 quarters: out[i] holds quarter i of each input, in order.
void transpose_quarters(const __m512i (&in)[4], __m512i (&out)[4]) {
  const __m512i even01 = _mm512_shuffle_i32x4(in[0], in[1], 0x88);
  const __m512i odd01 = _mm512_shuffle_i32x4(in[0], in[1], 0xdd);
  const __m512i even23 = _mm512_shuffle_i32x4(in[2], in[3], 0x88);
  const __m512i odd23 = _mm512_shuffle_i32x4(in[2], in[3], 0xdd);
  out[0] = _mm512_shuffle_i32x4(even01, even23, 0x88);
  out[1] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
  out[2] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
  out[3] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
}

void pack_tile(const std::byte* source, int64_t row_stride, std::byte* target) {
  __m512i rows[4][4];  // rows[i][j] is row 4 i + j
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      rows[i][j] = _mm512_loadu_si512(source + (4 * i + j) * row_stride);
    transpose_lanes(rows[i]);  // now rows[i][j], quarter q: pair 4 q + j of rows 4 i .. 4 i + 3
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i same_pair[4] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j]};
    __m512i lines[4];
    transpose_quarters(same_pair, lines);
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter)
      _mm512_store_si512(target + (4 * quarter + j) * 128, lines[quarter]);
  }
}

}  // namespace

void pack_pairs(const PackPairs& call) noexcept {
  int64_t pair = 0;
  if (call.num_rows == 16 && reinterpret_cast<uintptr_t>(call.target) % 64 == 0) {
    for (; pair + 16 <= call.num_pairs; pair += 16)
      pack_tile(call.source + pair * 4, call.row_stride, call.target + pair * 128);
  }
  for (int64_t row = 0; row < call.num_rows; ++row) {
    for (int64_t rest = pair; rest < call.num_pairs; ++rest) {
      __builtin_memcpy(call.target + rest * 128 + row * 4,
                       call.source + row * call.row_stride + rest * 4, 4);
    }
  }
}

}  // namespace gantry::avx512
