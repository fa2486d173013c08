#include "kernels/ceilings/peak_loops.h"

// The instructions are written as assembly: the compiler's intrinsics would need flags of their own
// for this file, and GCC's had an operand bug (GCC PR 122446).

namespace gantry::amx {
namespace {

// Eight tiles of 16 rows of 64 bytes, the largest that there are.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

constexpr int64_t kTileRowBytes = 64;
alignas(64) constexpr std::byte kTile[16 * kTileRowBytes] = {};

}  // namespace

void peak_dot_bf16(int64_t steps) noexcept {
  const TileConfig config;
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  asm volatile(
      "tilezero %%tmm0\n\t"
      "tilezero %%tmm1\n\t"
      "tilezero %%tmm2\n\t"
      "tilezero %%tmm3\n\t"
      "tileloadd (%0,%1,1), %%tmm4\n\t"
      "tileloadd (%0,%1,1), %%tmm5\n\t"
      "tileloadd (%0,%1,1), %%tmm6\n\t"
      "tileloadd (%0,%1,1), %%tmm7" ::"r"(kTile),
      "r"(kTileRowBytes)
      : "memory");
  // A 2 x 2 block of sums, as kernels use them: a product takes 52 cycles and starts every 16th, so
  // four sums are just enough.
  for (int64_t step = 0; step < steps; ++step) {
    asm volatile(
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\t"
        "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n\t"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n\t"
        "tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::);
  }
  asm volatile("tilerelease" ::: "memory");
}

}  // namespace gantry::amx
