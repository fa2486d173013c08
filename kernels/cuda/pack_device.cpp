#include "kernels/cuda/pack_device.h"

#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/pack_codes.h"

namespace gantry {
namespace {

struct Source {
  const PackedLayout& layout;
  CodedPanel panel;
  const std::byte* panels;

  [[nodiscard]] const std::byte* panel_of(int64_t row) const {
    return panels + layout.place_of(row).panel * layout.panel_bytes();
  }
  // The bits of an element: a code, or a 16-bit float.
  [[nodiscard]] uint32_t element(int64_t row, int64_t k) const {
    const int64_t lane = layout.place_of(row).lane;
    const std::byte* data = panel_of(row);
    if (layout.format.coded()) {
      const uint8_t code = code_at(panel, data, lane, k);
      GANTRY_CHECK(layout.format.element != WeightElement::kE4M3 || (code & 0x7fu) != 0x7fu,
                   ErrorCode::kUnsupported,
                   "row {}, column {}: the e4m3 weight is NaN, which GPU kernels do not read", row,
                   k);
      return code;
    }
    if (layout.dtype == DType::kF32) {
      return f32_to_bf16(load_as_f32(data, DType::kF32, layout.offset_in_panel(lane, k)));
    }
    uint16_t bits = 0;
    std::memcpy(&bits, data + layout.offset_in_panel(lane, k) * 2, 2);
    return bits;
  }
};

void pack_codes(const DeviceMatrix& m, const Source& source, int64_t tile, std::byte* device) {
  const int64_t depth = chunk_depth(m.element);
  const auto put = [&](int64_t chunk, int lane, int step, int e) {
    const FragmentPlace place = mma_a_place(lane, e);
    const int64_t row = m.row_at(tile, place.row);
    const int64_t k = chunk * depth + step * 16 + place.col;
    if (row < 0 || k >= m.k) return;
    const uint32_t bits = source.element(row, k);
    const int bit = element_bit(m.element, step, e);
    std::byte* target = device + m.chunk_offset(tile, chunk, lane) + bit / 8;
    target[0] |= static_cast<std::byte>((bits << (bit % 8)) & 0xffu);
    if (bits_of(m.element) == 16) target[1] |= static_cast<std::byte>(bits >> 8);
  };
  for (int64_t chunk = 0; chunk < m.num_chunks(); ++chunk) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int step = 0; step < depth / 16; ++step) {
        for (int e = 0; e < 8; ++e)
          put(chunk, lane, step, e);
      }
    }
  }
}

}  // namespace

void pack_device_tiles(const PackedLayout& layout, const DeviceMatrix& m, const std::byte* panels,
                       int64_t tile_begin, int64_t tile_end, std::byte* device) {
  const Source source{layout, layout.format.coded() ? layout.coded_panel() : CodedPanel{}, panels};
  const int64_t scale_bytes = size_of(m.scale);
  const int64_t groups_of_k = m.group > 0 ? ceil_div(m.k, m.group) : 0;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    pack_codes(m, source, tile, device);
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = m.row_at(tile, r);
      if (row < 0) continue;
      const int64_t lane = layout.place_of(row).lane;
      const std::byte* data = source.panel_of(row);
      for (int64_t g = 0; g < groups_of_k; ++g) {
        std::memcpy(device + m.scale_index(tile, g, r) * scale_bytes,
                    data + source.panel.scales + (g * kPanelWidth + lane) * scale_bytes,
                    static_cast<size_t>(scale_bytes));
        if (m.zero_points) {
          device[m.zeros + m.scale_index(tile, g, r)] =
              data[source.panel.zeros + g * kPanelWidth + lane];
        }
      }
      if (m.output_scale) {
        std::memcpy(device + m.output_scales + (tile * kTileRows + r) * 4,
                    data + source.panel.output_scales + lane * 4, 4);
      }
    }
  }
}

}  // namespace gantry
