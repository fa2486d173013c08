// Coded panels times rows of int8 on real tiles. Instructions are assembly for the reasons of
// panel_gemm_amx.cpp.

#include "kernels/base/amx_tile_config.h"
#include "kernels/grouped_gemm/amx_int8_panel.h"
#include "kernels/grouped_gemm/int8_panel_ops_avx512.h"

namespace gantry::amx {
namespace {

class HardwareTiles {
 public:
  HardwareTiles() = default;
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;
  ~HardwareTiles() { asm volatile("tilerelease" ::: "memory"); }

  void configure(int rows_low, int rows_high, int depth) {
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
  void store(int32_t* base, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  void dot_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  int rows_low_ = 0;
  int rows_high_ = 0;
  int depth_ = 0;
};

}  // namespace

void panel_gemm_int8(const PanelGemm& call) noexcept {
  HardwareTiles tiles;
  amx_int8::run<HardwareTiles, avx512::Int8PanelOps>(tiles, call);
}

}  // namespace gantry::amx
