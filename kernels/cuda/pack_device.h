#pragma once

#include <cstddef>

#include "kernels/base/export.h"
#include "kernels/cuda/device_matrix.h"

namespace gantry GANTRY_API {

/// Packs tiles [tile_begin, tile_end) of one matrix from the host's panels (PackedLayout) into the
/// GPU's order, by plain loops over the index maps. Different tiles may be packed by different
/// threads at once.
///
/// f32 weights are rounded to bf16 (to nearest even); everything else keeps its bits.
/// @param panels layout.bytes() bytes
/// @param matrix device_matrix(layout)
/// @param device matrix.bytes bytes, zeros before the first tile is packed
/// @throws Error kUnsupported for an e4m3 code that is NaN: the kernels have no test for it
void pack_device_tiles(const PackedLayout& layout, const DeviceMatrix& matrix,
                       const std::byte* panels, int64_t tile_begin, int64_t tile_end,
                       std::byte* device);

}  // namespace gantry
