#include <immintrin.h>

#include "kernels/ceilings/peak_loops.h"

namespace gantry::avx512 {
namespace {

constexpr int kChains = 16;
static_assert(kPeakInt8Op == int64_t{kChains} * 64 * 2);

}  // namespace

void peak_dot_int8(int64_t steps) noexcept {
  const __m512i x = _mm512_set1_epi8(1);
  __m512i sums[kChains] = {};
  for (int64_t step = 0; step < steps; ++step) {
    for (__m512i& sum : sums) {
      sum = _mm512_dpbusd_epi32(sum, x, x);
      asm volatile("" : "+v"(sum));  // the compiler must not work ahead
    }
  }
}

}  // namespace gantry::avx512
