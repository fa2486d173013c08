#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// 128 bits that tell whether two ranks have the same bytes. Against accidents, not attackers: two
/// independent 64-bit FNV-1a hashes, the second over the complement of each byte.
class Fingerprint {
 public:
  void add(std::span<const std::byte> bytes) noexcept;
  /// The text and its length, so that "ab" + "c" differs from "a" + "bc".
  void add(std::string_view text) noexcept;
  void add(int64_t number) noexcept;

  [[nodiscard]] const std::array<uint64_t, 2>& value() const noexcept { return state_; }
  /// 32 hexadecimal digits.
  [[nodiscard]] std::string hex() const;

 private:
  std::array<uint64_t, 2> state_ = {0xcbf29ce484222325U, 0x84222325cbf29ce4U};
};

}  // namespace gantry
