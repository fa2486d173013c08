#include <immintrin.h>

#include "kernels/ceilings/peak_loops.h"

namespace gantry::avx2 {
namespace {

// A multiply-add takes 4 cycles and a core starts two of them in each: 8 must be in flight. 12
// leave some slack and fit into 16 registers.
constexpr int kChains = 12;
static_assert(kPeakFmaFlop == int64_t{kChains} * 8 * 2);

}  // namespace

void peak_read(const std::byte* begin, int64_t bytes) noexcept {
  constexpr int kSums = 8;
  __m256i sums[kSums] = {};
  for (int64_t offset = 0; offset < bytes; offset += int64_t{kSums} * 32) {
    const auto* block = reinterpret_cast<const __m256i*>(begin + offset);
    for (int i = 0; i < kSums; ++i)
      sums[i] = _mm256_xor_si256(sums[i], _mm256_load_si256(block + i));
  }
  for (const __m256i& sum : sums)
    asm volatile("" ::"x"(sum));
}

void peak_fma(int64_t steps) noexcept {
  const __m256 x = _mm256_set1_ps(1e-3F);
  __m256 sums[kChains] = {};
  for (int64_t step = 0; step < steps; ++step) {
    for (__m256& sum : sums) {
      sum = _mm256_fmadd_ps(x, x, sum);
      asm volatile("" : "+x"(sum));  // the compiler must not work ahead
    }
  }
}

}  // namespace gantry::avx2
