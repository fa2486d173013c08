// Coded panels times rows of int8 on real tiles.

#include "kernels/grouped_gemm/amx_int8_panel.h"
#include "kernels/grouped_gemm/amx_tiles.h"
#include "kernels/grouped_gemm/int8_panel_ops_avx512.h"

namespace gantry::amx {

void panel_gemm_int8(const PanelGemm& call) noexcept {
  HardwareTiles tiles;
  amx_int8::run<HardwareTiles, avx512::Int8PanelOps>(tiles, call);
}

}  // namespace gantry::amx
