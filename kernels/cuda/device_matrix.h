#pragma once

// How weights and rows stand in the GPU's memory. Plain data and index maps, for host and device.

#include <cstdint>

#include "kernels/base/export.h"
#include "kernels/cuda/host_device.h"
#include "kernels/cuda/mma_fragments.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/quant/weight_format.h"

namespace gantry GANTRY_API {

/// Outputs of one tile: the rows of one mma.
inline constexpr int64_t kTileRows = 16;
/// k is padded with zeros to a multiple of this: a lane's 16 bytes of 4-bit codes.
inline constexpr int64_t kDeviceDepth = 64;
/// Token rows of one tile: the columns of one mma.
inline constexpr int64_t kTokenTile = 8;
/// Sections start at multiples of this: an L2 line, and what TMA wants and more.
inline constexpr int64_t kDeviceAlignment = 256;

/// One element of a weight matrix as GPU kernels read it.
enum class DeviceElement : uint8_t { kBF16, kF16, kE4M3, kInt8, kInt4, kE2M1 };
inline constexpr int kNumDeviceElements = 6;

GANTRY_HD constexpr int bits_of(DeviceElement element) noexcept {
  if (element == DeviceElement::kBF16 || element == DeviceElement::kF16) return 16;
  return element == DeviceElement::kE4M3 || element == DeviceElement::kInt8 ? 8 : 4;
}

/// Bytes of a stored scale, for device code.
GANTRY_HD constexpr int size_of_scale(ScaleType type) noexcept {
  if (type == ScaleType::kNone) return 0;
  if (type == ScaleType::kF32) return 4;
  return type == ScaleType::kF16 || type == ScaleType::kBF16 ? 2 : 1;
}

/// k that the 16 bytes of one lane cover: 16, 32 or 64.
GANTRY_HD constexpr int64_t chunk_depth(DeviceElement element) noexcept {
  return 16 * 16 / bits_of(element);
}

/// How one matrix W[n, k] stands in GPU memory: in the order in which a warp's lanes hold it as the
/// A operand of mma.m16n8k16 (and of wgmma m64k16 from registers), so that one 16-byte load a lane
/// feeds the tensor cores and a warp reads 512 bytes in a row.
///
/// Tile t holds outputs 16 t .. 16 t + 15; of a gated matrix (gate rows first, then up rows) gate
/// rows 8 t .. 8 t + 7 as its rows 0..7 and the matching up rows as its rows 8..15: then one lane
/// has the sums of gate and up of the same neuron and token. k is padded to a multiple of 64, the
/// outputs to a multiple of 64 as well (they are the next matrix' k). Padding is zero.
///
///   | scales [tile][G][16] | zero points [tile][G][16] i8 | output scales [tile][16] f32 | codes |
///
/// Codes, with c = chunk_depth and (lane, e) the place of (row, k % 16) in mma_a_place:
///
///   byte(tile, row, k) = ((tile * (K / c) + k / c) * 32 + lane) * 16 + place in the lane's 16
///   bytes
///
///   16 bits:  2 e
///   8 bits:   (k % 32 / 16) * 8 + e
///   4 bits:   32-bit word k % 64 / 16, bits 4 * (e / 2) + 16 * (e % 2): one shift and one mask
///   give
///             two elements in the two halves of a register
struct DeviceMatrix {
  DeviceElement element = DeviceElement::kBF16;
  ScaleType scale = ScaleType::kNone;
  bool gated = false;
  bool zero_points = false;
  bool output_scale = false;
  int64_t group = 0;  ///< k of one scale, a multiple of 16; 0 without group scales
  int64_t n = 0;      ///< rows of W, 2 J where gated
  int64_t k = 0;      ///< columns of W
  int64_t padded_k = 0;
  int64_t num_tiles = 0;
  int64_t num_groups = 0;  ///< of the padded k
  // Bytes from the start of the matrix to each section, and of all of it.
  int64_t zeros = 0;
  int64_t output_scales = 0;
  int64_t codes = 0;
  int64_t bytes = 0;

  /// n, or the neurons of a gated matrix.
  [[nodiscard]] GANTRY_HD int64_t num_outputs() const noexcept { return gated ? n / 2 : n; }
  /// Outputs with padding: a multiple of 64.
  [[nodiscard]] GANTRY_HD int64_t padded_outputs() const noexcept {
    return num_tiles * (gated ? kTileRows / 2 : kTileRows);
  }
  [[nodiscard]] GANTRY_HD int64_t num_chunks() const noexcept {
    return padded_k / chunk_depth(element);
  }
  /// Row of W at (tile, row in the tile), or -1 where there is padding.
  [[nodiscard]] GANTRY_HD int64_t row_at(int64_t tile, int row) const noexcept {
    const int64_t output = gated ? tile * 8 + row % 8 : tile * kTileRows + row;
    if (output >= num_outputs()) return -1;
    return gated && row >= 8 ? n / 2 + output : output;
  }
  /// Bytes from the start of the matrix to the 16 bytes of a lane.
  [[nodiscard]] GANTRY_HD int64_t chunk_offset(int64_t tile, int64_t chunk,
                                               int lane) const noexcept {
    return codes + ((tile * num_chunks() + chunk) * 32 + lane) * 16;
  }
  /// Index of the scale and of the zero point of (tile, group, row).
  [[nodiscard]] GANTRY_HD int64_t scale_index(int64_t tile, int64_t g, int row) const noexcept {
    return (tile * num_groups + g) * kTileRows + row;
  }

  friend bool operator==(const DeviceMatrix&, const DeviceMatrix&) = default;
};

/// Where a lane's element of mma step `step` (of the chunk's chunk_depth / 16) stands in its 16
/// bytes: bit offset from the first.
GANTRY_HD constexpr int element_bit(DeviceElement element, int step, int e) noexcept {
  switch (bits_of(element)) {
    case 16:
      return 16 * e;
    case 8:
      return step * 64 + 8 * e;
    default:
      return step * 32 + 4 * (e / 2) + 16 * (e % 2);
  }
}

/// The layout of a matrix on the GPU.
/// @throws Error kUnsupported if groups are no multiple of 16, or codes with zero points no
/// integers
DeviceMatrix device_matrix(const PackedLayout& layout);

/// Rows of activations [rows, k] as the B operand: 8 rows x 8 k are 128 bytes in a row ("core
/// matrices", what ldmatrix and wgmma without swizzle read), those of one k after the other. Rows
/// start at a multiple of 8, so a tile of 8 rows is a linear stream along k.
///
///   element(row, k) = ((row / 8) * (K / 8) + k / 8) * 64 + (row % 8) * 8 + k % 8
GANTRY_HD constexpr int64_t row_element(int64_t padded_k, int64_t row, int64_t k) noexcept {
  return (row / 8 * (padded_k / 8) + k / 8) * 64 + row % 8 * 8 + k % 8;
}

/// Place of k among 16 columns of rows of e4m3. Lanes find the weights of columns 2 q, 2 q + 1,
/// 2 q + 8 and 2 q + 9 in one register (of DeviceMatrix), where wgmma has columns 4 q .. 4 q + 3:
/// a sum may be taken in any order, if rows have the same.
GANTRY_HD constexpr int row8_column(int k) noexcept { return k % 8 / 2 * 4 + k / 8 * 2 + k % 2; }

/// Rows of e4m3 [rows, k] as the B operand of wgmma: 8 rows x 16 k are a core matrix.
///
///   byte(row, k) = ((row / 8) * (K / 16) + k / 16) * 128 + (row % 8) * 16 + row8_column(k % 16)
GANTRY_HD constexpr int64_t row8_element(int64_t padded_k, int64_t row, int64_t k) noexcept {
  return (row / 8 * (padded_k / 16) + k / 16) * 128 + row % 8 * 16 +
         row8_column(static_cast<int>(k % 16));
}

GANTRY_HD constexpr int64_t align_to(int64_t value, int64_t alignment) noexcept {
  return (value + alignment - 1) / alignment * alignment;
}

/// Where the state of one expert stands in GPU memory: one stride a layer, sections aligned to
/// kDeviceAlignment.
///
///   | w13 | w2 | b13 [S J] f32, gate then up | b2 [H] f32 |
struct DeviceSlotLayout {
  DeviceMatrix w13;
  DeviceMatrix w2;
  int64_t w2_offset = 0;
  int64_t b13_offset = -1;  ///< -1: no biases
  int64_t b2_offset = -1;
  int64_t stride_bytes = 0;

  friend bool operator==(const DeviceSlotLayout&, const DeviceSlotLayout&) = default;
};

/// @param w13, w2 as the host's slots have them
DeviceSlotLayout device_slot_layout(const PackedLayout& w13, const PackedLayout& w2, bool bias);

}  // namespace gantry
