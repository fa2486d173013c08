#include <algorithm>
#include <cstring>

#include "kernels/grouped_gemm/pack_words.h"

namespace gantry::scalar {
namespace {

// Nibbles 0 .. 7 to 0 2 4 6 1 3 5 7: nibbles 1 and 2 of each half change places, then bytes 1
// and 2.
uint32_t evens_first(uint32_t word) noexcept {
  const uint32_t nibbles = (word ^ (word >> 4)) & 0x00f000f0u;
  word ^= nibbles ^ (nibbles << 4);
  const uint32_t bytes = (word ^ (word >> 8)) & 0x0000ff00u;
  return word ^ bytes ^ (bytes << 8);
}

template <WordOrder kOrder>
void store_word(uint32_t word, int64_t lane, std::byte* line) noexcept {
  if constexpr (kOrder == WordOrder::kPairs) {
    std::byte* target = line + lane / 4 * 16 + lane % 4 * 2;
    std::memcpy(target, &word, 2);
    const auto high = static_cast<uint16_t>(word >> 16);
    std::memcpy(target + 8, &high, 2);
  } else {
    if constexpr (kOrder == WordOrder::kNibblePairs) word = evens_first(word);
    std::memcpy(line + lane * 4, &word, 4);
  }
}

template <WordOrder kOrder>
void pack(const PackWords& call) noexcept {
  constexpr int64_t kStep = 32;  // lines that stay in the L1 cache from row to row
  for (int64_t first = 0; first < call.num_words; first += kStep) {
    const int64_t end = std::min(call.num_words, first + kStep);
    for (int64_t row = 0; row < call.num_rows; ++row) {
      const uint8_t* source = call.source + row * call.row_stride;
      for (int64_t w = first; w < end; ++w) {
        uint32_t word = 0;
        std::memcpy(&word, source + w * 4, 4);
        store_word<kOrder>(word ^ call.flip, call.first_lane + row, call.target + w * 128);
      }
    }
  }
}

}  // namespace

void pack_words(const PackWords& call) noexcept {
  switch (call.order) {
    case WordOrder::kBytes:
      return pack<WordOrder::kBytes>(call);
    case WordOrder::kPairs:
      return pack<WordOrder::kPairs>(call);
    case WordOrder::kNibblePairs:
      return pack<WordOrder::kNibblePairs>(call);
  }
}

}  // namespace gantry::scalar
