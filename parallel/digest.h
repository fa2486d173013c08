#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

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

/// The digest of bytes, texts and numbers that come one after the other.
class DigestBuilder {
 public:
  DigestBuilder();
  DigestBuilder(const DigestBuilder&) = delete;
  DigestBuilder& operator=(const DigestBuilder&) = delete;
  ~DigestBuilder();

  void add(std::span<const std::byte> bytes) noexcept;
  /// The length and the text, so that "ab" + "c" differs from "a" + "bc".
  void add(std::string_view text) noexcept;
  void add(int64_t number) noexcept;

  /// Of what was added so far.
  [[nodiscard]] Digest digest() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace gantry
