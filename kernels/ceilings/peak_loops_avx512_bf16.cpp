#include <immintrin.h>

#include "kernels/ceilings/peak_loops.h"

namespace gantry::avx512 {
namespace {

// The latency of vdpbf16ps is longer than that of a multiply-add; two units need 12 in flight.
constexpr int kChains = 16;
static_assert(kPeakDotFlop == int64_t{kChains} * 32 * 2);

}  // namespace

void peak_dot_bf16(int64_t steps) noexcept {
  const __m512i bits = _mm512_set1_epi16(0x3a80);  // 2^-10: sums stay finite and normal
  const auto x = (__m512bh)bits;
  __m512 sums[kChains] = {};
  for (int64_t step = 0; step < steps; ++step) {
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, x, x);
      asm volatile("" : "+v"(sum));  // the compiler must not work ahead
    }
  }
}

}  // namespace gantry::avx512
