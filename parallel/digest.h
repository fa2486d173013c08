#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// 128 bits that differ where bytes differ: against accidents, not against forgery.
struct Digest {
  uint64_t low = 0;
  uint64_t high = 0;

  friend bool operator==(const Digest&, const Digest&) = default;
};

/// XXH3, 128 bits, seed 0: the same on every machine, and as fast as memory.
Digest digest_of(std::span<const std::byte> bytes) noexcept;

/// 32 hexadecimal digits.
std::string to_string(const Digest& digest);

}  // namespace gantry
