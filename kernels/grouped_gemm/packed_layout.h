#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "kernels/quant/weight_format.h"

namespace gantry GANTRY_API {

/// Outputs of one panel: two vectors or tiles of 16 columns.
inline constexpr int64_t kPanelWidth = 32;
inline constexpr int64_t kHalfPanel = 16;
/// k is padded with zeros to a multiple of this: the depth of one AMX tile of bf16.
inline constexpr int64_t kPanelDepth = 32;

/// k as it stands in panels and in the rows that meet them.
constexpr int64_t padded_depth(int64_t k) noexcept {
  return (k + kPanelDepth - 1) / kPanelDepth * kPanelDepth;
}

/// How one matrix W[n, k] stands in memory for the kernels: panels of 32 outputs, each one a linear
/// stream along k, the same for one row and for thousands.
///
/// Output o (see `gated`) is lane l = o % 32 of panel p = o / 32. Within a panel
///
///   bf16:      offset(l, k) = (k / 2) * 64 + l * 2 + k % 2      [elements]
///              pairs of k, the operand of vdpbf16ps and (16 lines 128 bytes apart) of tdpbf16ps
///   f32, f16:  offset(l, k) = k * 32 + l
///
/// A gated matrix is two of n / 2 rows: gate rows first, then up rows. Panel p then holds gate rows
/// 16 p .. 16 p + 15 in lanes 0..15 and the matching up rows in lanes 16..31, so that the
/// activation finds both in one accumulator block. Rows and columns that do not exist are zero.
///
/// A coded matrix (WeightFormat) has sections in each panel, each padded to 64 bytes:
///
///   | scales [G, 32] | zero points [G, 32] i8 | minimums [G, 32] | super-scales [S, 32] f16 |
///   | super-minimums [S, 32] f16 | output scales [32] f32 | codes |
///
/// with G groups and S super-groups of the padded k. Codes come in lines of 64 bytes for 16 lanes
/// (lanes 0..15 first, then 16..31 of the same k), l = lane % 16:
///
///   e4m3, e5m2:  4 k a line, byte (l / 4) * 16 + (k % 4 / 2) * 8 + (l % 4) * 2 + k % 2: unpacking
///                the low and high halves of 16-byte blocks to words gives pairs of k
///   int8:        4 k a line, byte l * 4 + k % 4: the operand of vpdpbusd and tdpbssd
///   4 bits:      8 k a line, 16-bit word l * 2 + k % 2, nibble k % 8 / 2: each shift by 4 bits
///                gives the table indices of a pair of k
struct PackedLayout {
  DType dtype = DType::kBF16;  ///< f32, f16 or bf16; of a coded matrix: f32, what it decodes to
  bool gated = false;
  int64_t n = 0;  ///< rows of W, 2 J where gated
  int64_t k = 0;  ///< columns of W
  WeightFormat format = {};

  [[nodiscard]] int64_t padded_k() const noexcept { return padded_depth(k); }
  /// Outputs that one panel can hold: 16 of a gated matrix (with their up rows), else 32.
  [[nodiscard]] int64_t panel_outputs() const noexcept { return gated ? kHalfPanel : kPanelWidth; }
  [[nodiscard]] int64_t num_outputs() const noexcept { return gated ? n / 2 : n; }
  [[nodiscard]] int64_t num_panels() const noexcept {
    return (num_outputs() + panel_outputs() - 1) / panel_outputs();
  }
  [[nodiscard]] int64_t panel_bytes() const noexcept {
    return format.coded() ? coded_panel().bytes : kPanelWidth * padded_k() * size_of(dtype);
  }
  /// Sections of a coded panel.
  [[nodiscard]] CodedPanel coded_panel() const noexcept;
  /// Bytes that hold something of W: without padding.
  [[nodiscard]] int64_t owned_bytes() const noexcept;
  [[nodiscard]] int64_t bytes() const noexcept { return num_panels() * panel_bytes(); }

  /// Panel and lane of a row of W (gate rows first where gated).
  struct Place {
    int64_t panel;
    int64_t lane;
  };
  [[nodiscard]] Place place_of(int64_t row) const noexcept {
    if (!gated) return {row / kPanelWidth, row % kPanelWidth};
    const int64_t half = n / 2;
    const int64_t output = row < half ? row : row - half;
    return {output / kHalfPanel, output % kHalfPanel + (row < half ? 0 : kHalfPanel)};
  }
  /// How many rows from `row` on stand side by side in one half of a panel.
  [[nodiscard]] int64_t rows_in_half(int64_t row) const noexcept {
    const int64_t lanes = kHalfPanel - place_of(row).lane % kHalfPanel;
    if (!gated || row >= n / 2) return lanes;
    return lanes < n / 2 - row ? lanes : n / 2 - row;  // up rows begin elsewhere
  }
  /// Elements from the start of a panel; not of a coded one.
  [[nodiscard]] int64_t offset_in_panel(int64_t lane, int64_t column) const noexcept {
    if (dtype != DType::kBF16) return column * kPanelWidth + lane;
    return column / 2 * (kPanelWidth * 2) + lane * 2 + column % 2;
  }
  /// Bytes from the start of the packed matrix; not of a coded one.
  [[nodiscard]] int64_t offset_bytes(int64_t row, int64_t column) const noexcept {
    const Place place = place_of(row);
    return place.panel * panel_bytes() + offset_in_panel(place.lane, column) * size_of(dtype);
  }

  friend bool operator==(const PackedLayout&, const PackedLayout&) = default;
};

/// "bf16", or for coded ones "int4 group 128 f16 scales, zero points".
std::string to_string(const PackedLayout& layout);
std::string to_string(const WeightFormat& format);

/// A block of W somewhere in memory: element (r, c) is `data` + (r * row_stride + c * col_stride)
/// elements of the layout's dtype.
struct StridedBlock {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
};

/// Copies a block into the packed matrix at (row_begin, col_begin). Elements that are written may
/// be written by one thread at a time only, but different blocks may be packed at once; padding is
/// not touched (the destination starts as zeros). Fast where rows are contiguous (col_stride 1).
void pack_block(const PackedLayout& layout, const StridedBlock& block, int64_t row_begin,
                int64_t col_begin, std::byte* packed) noexcept;

/// Packs a whole f32 matrix [n, k], rounding it to the layout's dtype.
void pack_matrix(const PackedLayout& layout, const float* matrix, std::byte* packed);

/// The logical matrix [n, k], widened to f32 (exactly).
std::vector<float> unpack_matrix(const PackedLayout& layout, const std::byte* packed);

}  // namespace gantry
