// The AMX kernel of int8 rows with its AVX-512 parts around emulated tiles: tests of those parts on
// machines without AMX.

#include "kernels/grouped_gemm/amx_emulated_tiles.h"
#include "kernels/grouped_gemm/amx_int8_panel.h"
#include "kernels/grouped_gemm/int8_panel_ops_avx512.h"

namespace gantry::avx512 {

void panel_gemm_int8_amx_emulated(const PanelGemm& call) noexcept {
  EmulatedTiles tiles;
  amx_int8::run<EmulatedTiles, Int8PanelOps>(tiles, call);
}

}  // namespace gantry::avx512
