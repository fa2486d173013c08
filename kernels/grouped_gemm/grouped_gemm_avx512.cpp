#include <immintrin.h>

#include "kernels/grouped_gemm/gemm_block.h"

// Dot products over k in 16 f32 lanes, 4 rows by 4 columns at a time: each weight vector is widened
// once and used by 4 rows. A (row, column) sum goes through the same lanes in the same order
// whatever tile it falls into, so a row's bits do not depend on the rows beside it.

namespace gantry::avx512 {
namespace {

constexpr int64_t kLanes = 16;

struct F32 {
  static constexpr int64_t kBytes = 4;
  static __m512 load(const std::byte* p) { return _mm512_loadu_ps(p); }
  static __m512 load(const std::byte* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
};

struct BF16 {
  static constexpr int64_t kBytes = 2;
  static __m512 widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static __m512 load(const std::byte* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(const std::byte* p, __mmask16 mask) {
    return widen(_mm256_maskz_loadu_epi16(mask, p));
  }
};

struct F16 {
  static constexpr int64_t kBytes = 2;
  static __m512 load(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(const std::byte* p, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
  }
};

template <typename Weight, int kRows, int kCols>
void tile(const GemmBlock& block, int64_t row, int64_t col) {
  __m512 sums[kRows][kCols];
  for (auto& line : sums) {
    for (__m512& sum : line)
      sum = _mm512_setzero_ps();
  }
  const float* x = block.x + row * block.k;
  const std::byte* w = block.weight + col * block.k * Weight::kBytes;
  const int64_t whole = block.k / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    __m512 weights[kCols];
    for (int c = 0; c < kCols; ++c)
      weights[c] = Weight::load(w + (c * block.k + k) * Weight::kBytes);
    for (int r = 0; r < kRows; ++r) {
      const __m512 input = _mm512_loadu_ps(x + r * block.k + k);
      for (int c = 0; c < kCols; ++c)
        sums[r][c] = _mm512_fmadd_ps(input, weights[c], sums[r][c]);
    }
  }
  if (whole < block.k) {
    const auto mask = static_cast<__mmask16>((1u << (block.k - whole)) - 1u);
    __m512 weights[kCols];
    for (int c = 0; c < kCols; ++c) {
      weights[c] = Weight::load(w + (c * block.k + whole) * Weight::kBytes, mask);
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512 input = _mm512_maskz_loadu_ps(mask, x + r * block.k + whole);
      for (int c = 0; c < kCols; ++c)
        sums[r][c] = _mm512_fmadd_ps(input, weights[c], sums[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) {
      const float bias = block.bias != nullptr ? block.bias[col + c] : 0.0F;
      block.y[(row + r) * block.n + col + c] = _mm512_reduce_add_ps(sums[r][c]) + bias;
    }
  }
}

template <typename Weight, int kCols>
void columns(const GemmBlock& block, int64_t col) {
  int64_t row = 0;
  for (; row + 4 <= block.num_rows; row += 4)
    tile<Weight, 4, kCols>(block, row, col);
  for (; row < block.num_rows; ++row)
    tile<Weight, 1, kCols>(block, row, col);
}

template <typename Weight>
void run(const GemmBlock& block) {
  int64_t col = block.n_begin;
  for (; col + 4 <= block.n_end; col += 4)
    columns<Weight, 4>(block, col);
  for (; col < block.n_end; ++col)
    columns<Weight, 1>(block, col);
}

}  // namespace

void grouped_gemm_f32(const GemmBlock& block) noexcept { run<F32>(block); }
void grouped_gemm_bf16(const GemmBlock& block) noexcept { run<BF16>(block); }
void grouped_gemm_f16(const GemmBlock& block) noexcept { run<F16>(block); }

}  // namespace gantry::avx512
