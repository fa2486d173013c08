#include "loader/byte_sum.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/log_format.h"

namespace gantry {

void ByteSum::add(int64_t offset, std::span<const std::byte> bytes) noexcept {
  auto index = static_cast<uint64_t>(offset) / 8;
  const auto lead = static_cast<size_t>(offset % 8);
  const auto add_word = [&](uint64_t word) {
    low += word;
    high += (index + 1) * word;
    ++index;
  };
  // Pieces need not begin or end at words: the sums are linear in every byte, so a part of a word
  // counts as that word with zeros for the rest.
  if (lead != 0) {
    const size_t count = std::min(8 - lead, bytes.size());
    uint64_t word = 0;
    std::memcpy(reinterpret_cast<std::byte*>(&word) + lead, bytes.data(), count);
    add_word(word);
    bytes = bytes.subspan(count);
  }
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), 8);
    add_word(word);
  }
  if (!bytes.empty()) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), bytes.size());
    add_word(word);
  }
}

std::string ByteSum::text() const { return fmt::format("{:016x}{:016x}", high, low); }

}  // namespace gantry
