#include <immintrin.h>

#include "kernels/base/amx_tile_config.h"
#include "kernels/grouped_gemm/amx_panel.h"

// Real tiles. The instructions are written as assembly because GCC's intrinsics paste the tile
// number into the text and so cannot take a template argument, and because its dot-product
// intrinsics had an operand bug (GCC PR 122446).

namespace gantry::amx {
namespace {

class HardwareTiles {
 public:
  HardwareTiles() = default;
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;
  ~HardwareTiles() { asm volatile("tilerelease" ::: "memory"); }

  void configure(int rows_low, int rows_high) {
    if (rows_low == rows_low_ && rows_high == rows_high_) return;
    rows_low_ = rows_low;
    rows_high_ = rows_high;
    TileConfig config;
    const int rows[8] = {rows_low, rows_low, rows_high, rows_high, rows_low, rows_high, 16, 16};
    for (int i = 0; i < 8; ++i)
      config.rows[i] = static_cast<uint8_t>(rows[i]);
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
  void store(float* base, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  void prefetch(const std::byte* line) {
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
  }

 private:
  int rows_low_ = 0;
  int rows_high_ = 0;
};

}  // namespace

void panel_gemm_bf16(const PanelGemm& call) noexcept {
  HardwareTiles tiles;
  amx_panel::run(tiles, call);
}

}  // namespace gantry::amx
