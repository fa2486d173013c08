#include "loader/encodings/code_orders.h"

#include <algorithm>
#include <cstring>

namespace gantry {
namespace {

constexpr int64_t kLineWords =
    16;  // words of a cache line, the least that is worth writing at once

// Exchanges the nibbles under `mask << shift` of `a` with those under `mask` of `b`.
void exchange(uint32_t& a, uint32_t& b, int shift, uint32_t mask) noexcept {
  const uint32_t moved = ((a >> shift) ^ b) & mask;
  a ^= moved << shift;
  b ^= moved;
}

// Nibble n of word w of each column to nibble w of word n: halves, quarters, single nibbles.
void transpose_nibbles(uint32_t (&words)[8][kLineWords]) noexcept {
  for (int64_t c = 0; c < kLineWords; ++c) {
    uint32_t w[8];
    for (int i = 0; i < 8; ++i)
      w[i] = words[i][c];
    for (int i = 0; i < 4; ++i)
      exchange(w[i], w[i + 4], 16, 0x0000ffffu);
    for (const int i : {0, 1, 4, 5})
      exchange(w[i], w[i + 2], 8, 0x00ff00ffu);
    for (const int i : {0, 2, 4, 6})
      exchange(w[i], w[i + 1], 4, 0x0f0f0f0fu);
    for (int i = 0; i < 8; ++i)
      words[i][c] = w[i];
  }
}

struct WordRange {
  int64_t begin;
  int64_t count;
};

// Words of eight inputs from `first` on; what does not exist is 0.
void load_inputs(const std::byte* source, const MatrixSize& size, int64_t first,
                 const WordRange& words, uint32_t (&inputs)[8][kLineWords]) noexcept {
  const int64_t row_bytes = (size.out + 7) / 8 * 4;
  const std::byte* from = source + first * row_bytes + words.begin * 4;
  if (words.count == kLineWords && first + 8 <= size.in) {
    for (int64_t i = 0; i < 8; ++i)
      std::memcpy(inputs[i], from + i * row_bytes, kLineWords * 4);
    return;
  }
  std::memset(inputs, 0, sizeof(inputs));
  const int64_t count = std::min<int64_t>(8, size.in - first);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(inputs[i], from + i * row_bytes, static_cast<size_t>(words.count) * 4);
}

}  // namespace

void transpose_words(const std::byte* source, int64_t rows, int64_t cols,
                     uint8_t* target) noexcept {
  for (int64_t r = 0; r < rows; r += kLineWords) {
    const int64_t num_rows = std::min(kLineWords, rows - r);
    for (int64_t c = 0; c < cols; c += kLineWords) {
      const int64_t num_cols = std::min(kLineWords, cols - c);
      for (int64_t i = 0; i < num_cols; ++i) {
        uint8_t* line = target + ((c + i) * rows + r) * 4;
        for (int64_t j = 0; j < num_rows; ++j)
          std::memcpy(line + j * 4, source + ((r + j) * cols + c + i) * 4, 4);
      }
    }
  }
}

void rows_of_awq(const std::byte* source, const MatrixSize& size, uint8_t* target) noexcept {
  const int64_t cols = (size.out + 7) / 8;
  const int64_t row_words = (size.in + 7) / 8;
  // 16 words of a target row at a time, for the outputs of one line of words.
  uint32_t block[kLineWords][8][kLineWords];
  for (int64_t c = 0; c < cols; c += kLineWords) {
    const int64_t num_cols = std::min(kLineWords, cols - c);
    for (int64_t w = 0; w < row_words; w += kLineWords) {
      const int64_t num_words = std::min(kLineWords, row_words - w);
      for (int64_t j = 0; j < num_words; ++j) {
        load_inputs(source, size, (w + j) * 8, {c, num_cols}, block[j]);
        transpose_nibbles(block[j]);
      }
      for (int64_t i = 0; i < num_cols; ++i) {
        for (int n = 0; n < 8; ++n) {
          const int64_t out = (c + i) * 8 + kAwqOutput[n];
          if (out >= size.out) continue;
          uint8_t* line = target + (out * row_words + w) * 4;
          for (int64_t j = 0; j < num_words; ++j)
            std::memcpy(line + j * 4, &block[j][n][i], 4);
        }
      }
    }
  }
}

void rows_of_pairs(const std::byte* source, const MatrixSize& size, uint8_t* target) noexcept {
  const int64_t row_bytes = (size.in + 1) / 2;
  for (int64_t o = 0; o < size.out; ++o) {
    const auto* pairs = reinterpret_cast<const uint8_t*>(source) + o / 2 * size.in;
    const int shift = o % 2 == 0 ? 0 : 4;
    uint8_t* row = target + o * row_bytes;
    for (int64_t b = 0; b < size.in / 2; ++b) {
      const unsigned low = static_cast<unsigned>(pairs[2 * b]) >> shift & 0xfu;
      const unsigned high = static_cast<unsigned>(pairs[2 * b + 1]) >> shift & 0xfu;
      row[b] = static_cast<uint8_t>(low | high << 4);
    }
    if (size.in % 2 != 0) row[row_bytes - 1] = pairs[size.in - 1] >> shift & 0xfu;
  }
}

}  // namespace gantry
