#pragma once

// Tiles of amx_int8_panel.h in plain C++: what the instructions of Intel's manual do. For tests on
// machines without AMX.

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace gantry {
namespace {

class EmulatedInt8Tiles {
 public:
  void configure(int rows_low, int rows_high, int depth) {
    const int rows[8] = {rows_low, rows_low,  rows_high, rows_high,
                         rows_low, rows_high, depth / 4, depth / 4};
    std::memcpy(rows_, rows, sizeof(rows));
    row_bytes_[4] = row_bytes_[5] = depth;
    std::memset(data_, 0, sizeof(data_));  // LDTILECFG zeroes all tiles
  }
  template <int T>
  void zero() {
    std::memset(data_[T], 0, sizeof(data_[T]));
  }
  template <int T>
  void load(const std::byte* base, int64_t stride) {
    zero<T>();
    for (int row = 0; row < rows_[T]; ++row)
      std::memcpy(data_[T][row], base + row * stride, static_cast<size_t>(row_bytes_[T]));
  }
  template <int T>
  void store(int32_t* base, int64_t stride) {
    for (int row = 0; row < rows_[T]; ++row)
      std::memcpy(reinterpret_cast<std::byte*>(base) + row * stride, data_[T][row], kRowBytes);
  }
  // TDPBSSD: every element of C gets four products of signed bytes from each row of B.
  template <int C, int A, int B>
  void dot_int8() {
    for (int m = 0; m < rows_[C]; ++m) {
      for (int n = 0; n < 16; ++n) {
        int32_t sum = 0;
        std::memcpy(&sum, data_[C][m] + n * 4, 4);
        for (int k = 0; k < row_bytes_[A]; ++k) {
          sum += static_cast<int8_t>(data_[A][m][k]) *
                 static_cast<int8_t>(data_[B][k / 4][n * 4 + k % 4]);
        }
        std::memcpy(data_[C][m] + n * 4, &sum, 4);
      }
    }
  }

 private:
  static constexpr int kRowBytes = 64;

  int rows_[8] = {};
  int row_bytes_[8] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::byte data_[8][16][kRowBytes] = {};
};

}  // namespace
}  // namespace gantry
