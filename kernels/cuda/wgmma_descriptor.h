#pragma once

// How wgmma is told where an operand stands in shared memory: the 64-bit matrix descriptor. wgmma
// reports no error for a wrong one, so this is host code as well and tests walk it.
// @source PTX ISA, "Matrix Descriptor Format" and "Shared Memory Matrix Layout" of wgmma

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace gantry {

/// Types of the operands; sums are f32.
enum class WgmmaType : uint8_t { kBF16, kF16, kE4M3 };

/// k of one wgmma: 32 bytes of a row.
GANTRY_HD constexpr int wgmma_depth(WgmmaType type) noexcept {
  return type == WgmmaType::kE4M3 ? 32 : 16;
}

/// Bytes of a row between which 16-byte units change places, by the row's number. The value is the
/// descriptor's field.
enum class SharedSwizzle : uint8_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

/// An operand whose rows hold k in ascending order ("K-major").
///
/// Without a swizzle, 8 rows x 16 bytes are 128 bytes in a row (a core matrix); `leading_bytes` is
/// the step to the next 16 bytes of k, `stride_bytes` the step to the next 8 rows:
///
///   address(row, byte) = start + row / 8 * stride + byte / 16 * leading + row % 8 * 16 + byte % 16
///
/// With a swizzle of S bytes, 8 rows of S bytes follow each other, and bits 4.. of an address are
/// xored with its bits 7.. (3, 2 or 1 of them): `leading_bytes` is not used.
struct SharedMatrix {
  uint32_t start = 0;  ///< address in shared memory, a multiple of 16
  uint32_t leading_bytes = 0;
  uint32_t stride_bytes = 0;
  SharedSwizzle swizzle = SharedSwizzle::kNone;
};

GANTRY_HD constexpr uint64_t shared_matrix_descriptor(const SharedMatrix& m) noexcept {
  return uint64_t{(m.start & 0x3ffffu) >> 4} | (uint64_t{(m.leading_bytes & 0x3ffffu) >> 4} << 16) |
         (uint64_t{(m.stride_bytes & 0x3ffffu) >> 4} << 32) |
         (static_cast<uint64_t>(m.swizzle) << 62);
}

/// The descriptor of the operand that begins `bytes` (a multiple of 16) further on: the next k.
GANTRY_HD constexpr uint64_t advance_descriptor(uint64_t descriptor, uint32_t bytes) noexcept {
  return descriptor + (bytes >> 4);
}

}  // namespace gantry
