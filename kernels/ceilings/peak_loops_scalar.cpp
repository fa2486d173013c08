#include "kernels/ceilings/peak_loops.h"

namespace gantry::scalar {
namespace {

// What a compiler makes of plain loops on the x86-64 baseline: 4 lanes, product and sum apart.
using Float4 = float __attribute__((vector_size(16)));

// A product and then a sum take 6 to 8 cycles, and a core starts at most two such pairs in each: 14
// chains keep it busy and leave registers for the constant.
constexpr int kChains = 14;
static_assert(kPeakFmaFlop == int64_t{kChains} * 4 * 2);

}  // namespace

void peak_read(const std::byte* begin, int64_t bytes) noexcept {
  constexpr int kSums = 8;
  uint64_t sums[kSums] = {};
  for (int64_t offset = 0; offset < bytes; offset += int64_t{kSums} * 8) {
    for (int i = 0; i < kSums; ++i) {
      uint64_t word = 0;
      __builtin_memcpy(&word, begin + offset + int64_t{i} * 8, 8);
      sums[i] ^= word;
    }
  }
  for (const uint64_t sum : sums)
    asm volatile("" ::"r"(sum));
}

void peak_fma(int64_t steps) noexcept {
  const Float4 x = {1e-3F, 1e-3F, 1e-3F, 1e-3F};
  Float4 sums[kChains] = {};
  for (int64_t step = 0; step < steps; ++step) {
    for (Float4& sum : sums) {
      sum = sum * x + x;
      asm volatile("" : "+x"(sum));  // the compiler must not work ahead
    }
  }
}

}  // namespace gantry::scalar
