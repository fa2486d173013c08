#pragma once

// Plain data only, as in panel_gemm.h.

#include <cstddef>
#include <cstdint>

namespace gantry {

/// How the codes of one 32-bit word of a row stand in a line of a coded panel (PackedLayout).
enum class WordOrder : uint8_t {
  kBytes,        ///< int8: the word as it is, lane l at byte 4 l
  kPairs,        ///< e4m3: its two halves 8 bytes apart
  kNibblePairs,  ///< 4 bits: codes 0, 2, 4, 6 in the low half, 1, 3, 5, 7 in the high half
};

/// Copies codes of `num_rows` rows (lanes first_lane .. first_lane + num_rows - 1 <= 16) into one
/// half of a coded panel: word w of each row into line w, 128 bytes apart. Words are little endian:
/// 4 codes of a byte, or 8 nibbles, first code lowest.
struct PackWords {
  const uint8_t* source;
  int64_t row_stride;  ///< bytes
  int64_t num_rows;
  int64_t num_words;
  int64_t first_lane;
  uint32_t flip;  ///< XORed to each word
  WordOrder order;
  std::byte* target;  ///< line 0 of the half, aligned to 64 bytes
};

namespace scalar {
void pack_words(const PackWords& call) noexcept;
}  // namespace scalar
namespace avx512 {
void pack_words(const PackWords& call) noexcept;
}  // namespace avx512

}  // namespace gantry
