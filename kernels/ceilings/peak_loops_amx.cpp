#include "kernels/base/amx_tile_config.h"
#include "kernels/ceilings/peak_loops.h"

// The instructions are written as assembly: the compiler's intrinsics would need flags of their own
// for this file, and GCC's had an operand bug (GCC PR 122446).

namespace gantry::amx {
namespace {

constexpr int64_t kTileRowBytes = 64;
alignas(64) constexpr std::byte kTile[16 * kTileRowBytes] = {};

}  // namespace

void peak_dot_bf16(int64_t steps) noexcept {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile)
    config.rows[tile] = 16;
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
