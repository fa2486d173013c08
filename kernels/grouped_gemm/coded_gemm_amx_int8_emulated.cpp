// The AMX kernel of int8 rows on emulated tiles, in plain C++.

#include <cmath>
#include <cstring>

#include "kernels/grouped_gemm/amx_emulated_tiles.h"
#include "kernels/grouped_gemm/amx_int8_panel.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "kernels/grouped_gemm/packed_layout.h"

namespace gantry::scalar {
namespace {

int unit_of(const CodedPanel& panel) {
  return panel.format.element == WeightElement::kE2M1 ? 2 : 1;
}

struct Int8PanelOps {
  static void decode(const PanelGemm& call, int64_t k, int64_t count, std::byte* out) {
    constexpr int64_t kOrder[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    const CodedPanel& panel = *call.coded;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = k + i / 8 * 8 + kOrder[i % 8];
      for (int64_t lane = 0; lane < kPanelWidth; ++lane) {
        const float value =
            code_value(panel.format.element, code_at(panel, call.panel, lane, from));
        out[i / 4 * 128 + lane * 4 + i % 4] =
            static_cast<std::byte>(static_cast<int>(value * static_cast<float>(unit_of(panel))));
      }
    }
  }

  static void add_group(const amx_int8::GroupSums& group) {
    const PanelGemm& call = group.call;
    const CodedPanel& panel = *call.coded;
    for (int64_t r = 0; r < group.rows; ++r) {
      const std::byte* sums = call.x + (group.row + r) * call.x_stride + call.x_sums +
                              static_cast<int64_t>(sizeof(Int8RowTail));
      float* c = call.c + (group.row + r) * kPanelWidth;
      for (int64_t lane = 0; lane < kPanelWidth; ++lane) {
        const int64_t at = group.group * kPanelWidth + lane;
        int32_t sum = group.sums[r * kPanelWidth + lane];
        if (panel.format.zero_points) {
          int32_t x = 0;
          std::memcpy(&x, sums + group.group * 4, 4);
          sum -= x * static_cast<int8_t>(call.panel[panel.zeros + at]) * unit_of(panel);
        }
        const bool scaled = panel.format.scale != ScaleType::kNone;
        const float scale = scaled ? group_scale(panel, call.panel, lane, group.group) : 1.0F;
        c[lane] = std::fma(static_cast<float>(sum), scale, group.group == 0 ? 0.0F : c[lane]);
        if (!panel.format.minimums) continue;
        int32_t x = 0;
        std::memcpy(&x, sums + group.group * 4, 4);
        c[lane] = std::fma(-static_cast<float>(x),
                           group_minimum(panel, call.panel, lane, group.group), c[lane]);
      }
    }
  }

  static void finish(const PanelGemm& call, int64_t row, int64_t rows) {
    const CodedPanel& panel = *call.coded;
    for (int64_t r = row; r < row + rows; ++r) {
      float scale = 0.0F;
      std::memcpy(&scale, call.x + r * call.x_stride + call.x_sums, 4);
      scale /= static_cast<float>(unit_of(panel));
      for (int64_t lane = 0; lane < kPanelWidth; ++lane) {
        float& c = call.c[r * kPanelWidth + lane];
        c *= scale;
        if (panel.format.output_scale)
          c *= load_scale(call.panel + panel.output_scales, ScaleType::kF32, lane);
      }
    }
  }
};

}  // namespace

void panel_gemm_int8_amx_emulated(const PanelGemm& call) noexcept {
  EmulatedTiles tiles;
  amx_int8::run<EmulatedTiles, Int8PanelOps>(tiles, call);
}

}  // namespace gantry::scalar
