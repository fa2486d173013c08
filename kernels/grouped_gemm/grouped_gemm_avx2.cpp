#include <immintrin.h>

#include "kernels/grouped_gemm/gemm_block.h"

// As the AVX-512 file, in 8 lanes and tiles of 2 rows by 4 columns (16 registers). The remainder of
// k is summed in scalar f32 after the lanes.

namespace gantry::avx2 {
namespace {

constexpr int64_t kLanes = 8;

struct F32 {
  static constexpr int64_t kBytes = 4;
  static __m256 load(const std::byte* p) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  }
  static float load_one(const std::byte* p) {
    return _mm_cvtss_f32(_mm_load_ss(reinterpret_cast<const float*>(p)));
  }
};

struct BF16 {
  static constexpr int64_t kBytes = 2;
  static __m256 load(const std::byte* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static float load_one(const std::byte* p) {
    const __m128i bits =
        _mm_slli_epi32(_mm_cvtsi32_si128(*reinterpret_cast<const uint16_t*>(p)), 16);
    return _mm_cvtss_f32(_mm_castsi128_ps(bits));
  }
};

struct F16 {
  static constexpr int64_t kBytes = 2;
  static __m256 load(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static float load_one(const std::byte* p) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(*reinterpret_cast<const uint16_t*>(p))));
  }
};

float reduce_add(__m256 sum) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  half = _mm_add_ss(half, _mm_movehdup_ps(half));
  return _mm_cvtss_f32(half);
}

template <typename Weight, int kRows, int kCols>
void tile(const GemmBlock& block, int64_t row, int64_t col) {
  __m256 sums[kRows][kCols];
  for (auto& line : sums) {
    for (__m256& sum : line)
      sum = _mm256_setzero_ps();
  }
  const float* x = block.x + row * block.k;
  const std::byte* w = block.weight + col * block.k * Weight::kBytes;
  const int64_t whole = block.k / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    __m256 weights[kCols];
    for (int c = 0; c < kCols; ++c)
      weights[c] = Weight::load(w + (c * block.k + k) * Weight::kBytes);
    for (int r = 0; r < kRows; ++r) {
      const __m256 input = _mm256_loadu_ps(x + r * block.k + k);
      for (int c = 0; c < kCols; ++c)
        sums[r][c] = _mm256_fmadd_ps(input, weights[c], sums[r][c]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) {
      float sum = reduce_add(sums[r][c]);
      for (int64_t k = whole; k < block.k; ++k) {
        sum += x[r * block.k + k] * Weight::load_one(w + (c * block.k + k) * Weight::kBytes);
      }
      const float bias = block.bias != nullptr ? block.bias[col + c] : 0.0F;
      block.y[(row + r) * block.n + col + c] = sum + bias;
    }
  }
}

template <typename Weight, int kCols>
void columns(const GemmBlock& block, int64_t col) {
  int64_t row = 0;
  for (; row + 2 <= block.num_rows; row += 2)
    tile<Weight, 2, kCols>(block, row, col);
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

}  // namespace gantry::avx2
