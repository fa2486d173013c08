#pragma once

// A transpose of 16 x 16 dwords in registers, first within quarters of 4 x 4, then of the quarters.
// For files that are compiled for AVX-512.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace gantry::avx512 {

namespace transpose_detail {

// In each 128-bit lane: transposes 4 x 4 dwords of four vectors.
inline void transpose_lanes(__m512i (&v)[4]) {
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
inline void transpose_quarters(const __m512i (&in)[4], __m512i (&out)[4]) {
  const __m512i even01 = _mm512_shuffle_i32x4(in[0], in[1], 0x88);
  const __m512i odd01 = _mm512_shuffle_i32x4(in[0], in[1], 0xdd);
  const __m512i even23 = _mm512_shuffle_i32x4(in[2], in[3], 0x88);
  const __m512i odd23 = _mm512_shuffle_i32x4(in[2], in[3], 0xdd);
  out[0] = _mm512_shuffle_i32x4(even01, even23, 0x88);
  out[1] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
  out[2] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
  out[3] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
}

}  // namespace transpose_detail

/// Transposes 16 rows of 16 dwords, row 4 i + j in rows[i][j]: store(column, line) takes each
/// column. The rows are overwritten.
template <typename Store>
inline void transpose_dwords(__m512i (&rows)[4][4], const Store& store) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    transpose_detail::transpose_lanes(rows[i]);  // now quarter q of rows[i][j]: column 4 q + j of
                                                 // rows 4 i .. 4 i + 3
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i same_column[4] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j]};
    __m512i lines[4];
    transpose_detail::transpose_quarters(same_column, lines);
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter)
      store(4 * quarter + j, lines[quarter]);
  }
}

/// Reads 16 dwords of each of 16 rows and writes them column by column, 128 bytes apart, each
/// column after finish(column). Whole lines that nobody reads soon go past the caches, which keep
/// what is being packed (loads of int4: 0.32 -> 0.40 of a plain read on Zen 4). An _mm_sfence() has
/// to follow before another thread reads them.
template <typename Byte, typename Finish>
inline void transpose_tile(const Byte* source, int64_t row_stride, std::byte* target,
                           const Finish& finish) {
  __m512i rows[4][4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      rows[i][j] = _mm512_loadu_si512(source + (4 * i + j) * row_stride);
  }
  transpose_dwords(rows, [&](int column, __m512i line) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + column * 128), finish(line));
  });
}

}  // namespace gantry::avx512
