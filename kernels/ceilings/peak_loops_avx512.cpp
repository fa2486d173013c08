#include <immintrin.h>

#include "kernels/ceilings/peak_loops.h"

namespace gantry::avx512 {
namespace {

// 8 multiply-adds must be in flight (4 cycles, two units); 16 hide longer latencies as well.
constexpr int kChains = 16;
static_assert(kPeakFmaFlop == int64_t{kChains} * 16 * 2);

}  // namespace

void peak_read(const std::byte* begin, int64_t bytes) noexcept {
  constexpr int kSums = 8;
  static_assert(int64_t{kSums} * 64 == kPeakReadBlock);
  __m512i sums[kSums] = {};
  for (int64_t offset = 0; offset < bytes; offset += kPeakReadBlock) {
    const auto* block = reinterpret_cast<const __m512i*>(begin + offset);
    for (int i = 0; i < kSums; ++i)
      sums[i] = _mm512_xor_si512(sums[i], _mm512_load_si512(block + i));
  }
  for (const __m512i& sum : sums)
    asm volatile("" ::"v"(sum));
}

void peak_fma(int64_t steps) noexcept {
  const __m512 x = _mm512_set1_ps(1e-3F);
  __m512 sums[kChains] = {};
  for (int64_t step = 0; step < steps; ++step) {
    for (__m512& sum : sums) {
      sum = _mm512_fmadd_ps(x, x, sum);
      asm volatile("" : "+v"(sum));  // the compiler must not work ahead
    }
  }
}

}  // namespace gantry::avx512
