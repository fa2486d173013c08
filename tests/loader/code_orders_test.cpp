// Packed integers of other orders brought into rows, against the place that the formats give to
// each code, read one by one.

#include "loader/encodings/code_orders.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

std::vector<std::byte> random_bytes(SeededRng& rng, int64_t count) {
  std::vector<std::byte> bytes(static_cast<size_t>(count));
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(rng.integer(0, 255));
  return bytes;
}

uint32_t word_at(const std::vector<std::byte>& bytes, int64_t index) {
  uint32_t word = 0;
  std::memcpy(&word, bytes.data() + index * 4, 4);
  return word;
}

uint32_t nibble_of(const std::vector<uint8_t>& rows, int64_t row_bytes, int64_t o, int64_t i) {
  return static_cast<uint32_t>(rows[static_cast<size_t>(o * row_bytes + i / 2)]) >> (i % 2 * 4) &
         0xfu;
}

const std::vector<MatrixSize>& sizes() {
  static const std::vector<MatrixSize> all = {{1, 1},   {8, 8},   {3, 17},    {17, 3},  {128, 128},
                                              {136, 8}, {8, 136}, {131, 129}, {264, 40}};
  return all;
}

TEST(CodeOrdersTest, AwqColumnsBecomeRows) {
  constexpr int kShift[8] = {0, 16, 4, 20, 8, 24, 12, 28};  // AWQ's order 0 2 4 6 1 3 5 7
  SeededRng rng;
  for (const MatrixSize& size : sizes()) {
    const int64_t cols = (size.out + 7) / 8;
    const std::vector<std::byte> words = random_bytes(rng, size.in * cols * 4);
    const int64_t row_bytes = (size.in + 7) / 8 * 4;
    std::vector<uint8_t> rows(static_cast<size_t>(size.out * row_bytes), 0xee);
    rows_of_awq(words.data(), size, rows.data());
    for (int64_t o = 0; o < size.out; ++o) {
      for (int64_t i = 0; i < row_bytes * 2; ++i) {
        const uint32_t expected =
            i < size.in ? word_at(words, i * cols + o / 8) >> kShift[o % 8] & 0xfu : 0u;
        ASSERT_EQ(nibble_of(rows, row_bytes, o, i), expected)
            << size.out << " x " << size.in << " at " << o << ", " << i;
      }
    }
  }
}

TEST(CodeOrdersTest, WordsAreTransposed) {
  SeededRng rng;
  for (const MatrixSize& size : sizes()) {
    const std::vector<std::byte> source = random_bytes(rng, size.out * size.in * 4);
    std::vector<uint8_t> target(source.size());
    transpose_words(source.data(), size.in, size.out, target.data());
    for (int64_t o = 0; o < size.out; ++o) {
      for (int64_t i = 0; i < size.in; ++i) {
        uint32_t word = 0;
        std::memcpy(&word, target.data() + (o * size.in + i) * 4, 4);
        ASSERT_EQ(word, word_at(source, i * size.out + o)) << o << ", " << i;
      }
    }
  }
}

TEST(CodeOrdersTest, RowPairsComeApart) {
  SeededRng rng;
  for (const MatrixSize& size : sizes()) {
    const std::vector<std::byte> pairs = random_bytes(rng, (size.out + 1) / 2 * size.in);
    const int64_t row_bytes = (size.in + 1) / 2;
    std::vector<uint8_t> rows(static_cast<size_t>(size.out * row_bytes));
    rows_of_pairs(pairs.data(), size, rows.data());
    for (int64_t o = 0; o < size.out; ++o) {
      for (int64_t i = 0; i < size.in; ++i) {
        const auto byte = static_cast<uint32_t>(pairs[static_cast<size_t>(o / 2 * size.in + i)]);
        ASSERT_EQ(nibble_of(rows, row_bytes, o, i), o % 2 == 0 ? byte & 0xfu : byte >> 4)
            << o << ", " << i;
      }
    }
  }
}

}  // namespace
}  // namespace gantry::test
