// The AMX kernel on real tiles.

#include "kernels/grouped_gemm/amx_panel.h"
#include "kernels/grouped_gemm/amx_tiles.h"

namespace gantry::amx {

void panel_gemm_bf16(const PanelGemm& call) noexcept {
  HardwareTiles tiles;
  amx_panel::run(tiles, call);
}

}  // namespace gantry::amx
