#pragma once

// The multiply instruction of coded_gemm_avx512.h for rows of bf16. For files compiled for
// AVX512_BF16.

#include <immintrin.h>

#include <cstring>

namespace gantry::avx512 {
namespace {

struct DotMultiply {
  static constexpr int64_t kBytes = 2;  // of one k in a row of x
  template <int kRows>
  static void add(__m512 (&sums)[kRows][2], const std::byte* const (&start)[(kRows + 2) / 3],
                  int64_t offset, int64_t stride, __m512i w0, __m512i w1) {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int bits;
      std::memcpy(&bits, start[r / 3] + (r % 3) * stride + offset, 4);
      const auto x = (__m512bh)_mm512_set1_epi32(bits);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, (__m512bh)w0);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, (__m512bh)w1);
    }
  }
};

}  // namespace
}  // namespace gantry::avx512
