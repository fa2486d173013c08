#pragma once

// Real tiles. The instructions are written as assembly because GCC's intrinsics paste the tile
// number into the text and so cannot take a template argument, and because its dot-product
// intrinsics had an operand bug (GCC PR 122446).

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/base/amx_tile_config.h"

namespace gantry::amx {
namespace {

/// Tiles 0 to 3 are sums [rows, 16], 4 and 5 rows of x [rows, depth bytes], 6 and 7 weights.
class HardwareTiles {
 public:
  HardwareTiles() = default;
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;
  ~HardwareTiles() { asm volatile("tilerelease" ::: "memory"); }

  /// @param depth bytes of a row of x
  void configure(int rows_low, int rows_high, int depth = 64) {
    if (rows_low == rows_low_ && rows_high == rows_high_ && depth == depth_) return;
    rows_low_ = rows_low;
    rows_high_ = rows_high;
    depth_ = depth;
    TileConfig config;
    const int rows[8] = {rows_low, rows_low,  rows_high, rows_high,
                         rows_low, rows_high, depth / 4, depth / 4};
    for (int i = 0; i < 8; ++i)
      config.rows[i] = static_cast<uint8_t>(rows[i]);
    config.row_bytes[4] = config.row_bytes[5] = static_cast<uint16_t>(depth);
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  template <int T>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  void load(const std::byte* base, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void stream(const std::byte* base, int64_t stride) {
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void store(void* base, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  void dot_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  void prefetch(const std::byte* line) {
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
  }

 private:
  int rows_low_ = 0;
  int rows_high_ = 0;
  int depth_ = 0;
};

}  // namespace
}  // namespace gantry::amx
