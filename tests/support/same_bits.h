#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

namespace gantry::test {

/// As memcmp: +0 and -0 differ, equal NaNs do not. Ranges may be empty.
inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

}  // namespace gantry::test
