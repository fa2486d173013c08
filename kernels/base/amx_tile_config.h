#pragma once

// Plain data only: for files that are compiled for one instruction set.

#include <cstdint>

namespace gantry::amx {

/// The operand of LDTILECFG for eight tiles of 64 bytes a row. `rows` are the caller's.
/// @source Intel's instruction set manual, LDTILECFG, palette 1
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace gantry::amx
