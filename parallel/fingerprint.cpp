#include "parallel/fingerprint.h"

#include <fmt/format.h>

namespace gantry {

void Fingerprint::add(std::span<const std::byte> bytes) noexcept {
  constexpr uint64_t kPrime = 0x100000001b3U;
  for (const std::byte byte : bytes) {
    const auto value = static_cast<uint64_t>(byte);
    state_[0] = (state_[0] ^ value) * kPrime;
    state_[1] = (state_[1] ^ (value ^ 0xffU)) * kPrime;
  }
}

void Fingerprint::add(std::string_view text) noexcept {
  add(static_cast<int64_t>(text.size()));
  add(std::as_bytes(std::span(text)));
}

void Fingerprint::add(int64_t number) noexcept { add(std::as_bytes(std::span(&number, 1))); }

std::string Fingerprint::hex() const { return fmt::format("{:016x}{:016x}", state_[0], state_[1]); }

}  // namespace gantry
