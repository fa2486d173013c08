#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// A checksum of a file's bytes that may be fed in any order and in any pieces.
///
/// With the file as little-endian 64-bit words w[i] (the last one filled with zeros):
///   low = sum of w[i],  high = sum of (i + 1) * w[i],  both modulo 2^64.
/// It notices torn, swapped and changed pieces; it is no protection against somebody who forges.
/// Runs at the speed of memory, so that writers can afford it.
struct ByteSum {
  uint64_t low = 0;
  uint64_t high = 0;

  /// Adds the bytes that stand at `offset` of the file.
  void add(int64_t offset, std::span<const std::byte> bytes) noexcept;
  void add(const ByteSum& other) noexcept {
    low += other.low;
    high += other.high;
  }

  /// 32 hex digits.
  [[nodiscard]] std::string text() const;
  friend bool operator==(const ByteSum&, const ByteSum&) = default;
};

}  // namespace gantry
