// The AMX kernel on emulated tiles, for tests on machines without AMX.

#include "kernels/grouped_gemm/amx_emulated_tiles.h"
#include "kernels/grouped_gemm/amx_panel.h"

namespace gantry::scalar {

void panel_gemm_bf16_amx_emulated(const PanelGemm& call) noexcept {
  EmulatedTiles tiles;
  amx_panel::run(tiles, call);
}

}  // namespace gantry::scalar
