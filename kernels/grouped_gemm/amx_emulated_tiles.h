#pragma once

// Tiles in plain C++: what the instructions of Intel's manual do, for tests on machines without
// AMX.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/base/float_convert.h"

namespace gantry {
namespace {

/// As HardwareTiles of amx_tiles.h.
class EmulatedTiles {
 public:
  void configure(int rows_low, int rows_high, int depth = 64) {
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
  void stream(const std::byte* base, int64_t stride) {
    load<T>(base, stride);
  }
  template <int T>
  void store(void* base, int64_t stride) {
    for (int row = 0; row < rows_[T]; ++row)
      std::memcpy(static_cast<std::byte*>(base) + row * stride, data_[T][row], kRowBytes);
  }
  // TDPBF16PS: per element of C, the products of the even k and those of the odd k are summed apart
  // by fused multiply-adds, then added to each other and to C; denormals count as zero.
  template <int C, int A, int B>
  void dot_bf16() {
    for (int m = 0; m < rows_[C]; ++m) {
      for (int n = 0; n < 16; ++n) {
        float sums[2] = {};
        for (int k = 0; k < 16; ++k) {
          for (const int odd : {0, 1}) {
            const float a = flush(bf16_to_f32(read<uint16_t>(data_[A][m], 2 * k + odd)));
            const float b = flush(bf16_to_f32(read<uint16_t>(data_[B][k], 2 * n + odd)));
            sums[odd] = flush(std::fma(a, b, sums[odd]));
          }
        }
        const float sum = flush(read<float>(data_[C][m], n) + flush(sums[0] + sums[1]));
        std::memcpy(data_[C][m] + n * 4, &sum, 4);
      }
    }
  }
  // TDPBSSD: every element of C gets four products of signed bytes from each row of B.
  template <int C, int A, int B>
  void dot_int8() {
    for (int m = 0; m < rows_[C]; ++m) {
      for (int n = 0; n < 16; ++n) {
        auto sum = read<int32_t>(data_[C][m], n);
        for (int k = 0; k < row_bytes_[A]; ++k) {
          sum += static_cast<int8_t>(data_[A][m][k]) *
                 static_cast<int8_t>(data_[B][k / 4][n * 4 + k % 4]);
        }
        std::memcpy(data_[C][m] + n * 4, &sum, 4);
      }
    }
  }
  void prefetch(const std::byte* /*line*/) {}

 private:
  static constexpr int kRowBytes = 64;

  template <typename T>
  static T read(const std::byte* row, int index) {
    T value;
    std::memcpy(&value, row + static_cast<size_t>(index) * sizeof(T), sizeof(T));
    return value;
  }
  static float flush(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0F, value) : value;
  }

  int rows_[8] = {};
  int row_bytes_[8] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::byte data_[8][16][kRowBytes] = {};
};

}  // namespace
}  // namespace gantry
