#include <immintrin.h>

#include "kernels/grouped_gemm/panel_gemm.h"

// Up to 6 rows by half a panel (16 columns) in two passes: 12 accumulators, 2 to 4 weight vectors,
// 1 broadcast. Up to 2 rows take the whole panel in one pass, because then the memory is what they
// wait for, and it streams best in one line. Each sum takes k in ascending order either way.

namespace gantry::avx2 {
namespace {

constexpr int kMaxBlock = 6;

struct F32 {
  static constexpr int kSteps = 1;
  static void load(const std::byte* panel, int64_t k, int half, __m256 (&w)[kSteps][2]) {
    const auto* p = reinterpret_cast<const float*>(panel + k * 128 + half * 64);
    w[0][0] = _mm256_load_ps(p);
    w[0][1] = _mm256_load_ps(p + 8);
  }
};

struct F16 {
  static constexpr int kSteps = 1;
  static void load(const std::byte* panel, int64_t k, int half, __m256 (&w)[kSteps][2]) {
    const auto* p = reinterpret_cast<const __m128i*>(panel + k * 64 + half * 32);
    w[0][0] = _mm256_cvtph_ps(_mm_load_si128(p));
    w[0][1] = _mm256_cvtph_ps(_mm_load_si128(p + 1));
  }
};

struct BF16 {
  static constexpr int kSteps = 2;
  static void load(const std::byte* panel, int64_t k, int half, __m256 (&w)[kSteps][2]) {
    const __m256i odd_mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    const auto* p = reinterpret_cast<const __m256i*>(panel + k / 2 * 128 + half * 64);
    for (int quarter = 0; quarter < 2; ++quarter) {
      const __m256i pairs = _mm256_load_si256(p + quarter);
      w[0][quarter] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
      w[1][quarter] = _mm256_castsi256_ps(_mm256_and_si256(pairs, odd_mask));
    }
  }
};

template <typename Weight, int kRows, int kHalves>
void block(const PanelGemm& call, int64_t row, int first_half) {
  __m256 sums[kHalves][kRows][2];
  for (int half = 0; half < kHalves; ++half) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const float* c = call.c + (row + r) * 32 + (first_half + half) * 16;
      sums[half][r][0] = call.accumulate ? _mm256_load_ps(c) : _mm256_setzero_ps();
      sums[half][r][1] = call.accumulate ? _mm256_load_ps(c + 8) : _mm256_setzero_ps();
    }
  }
  const std::byte* x = call.x + row * call.x_stride;
  for (int64_t k = 0; k < call.k; k += Weight::kSteps) {
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      __m256 w[Weight::kSteps][2];
      Weight::load(call.panel, k, first_half + half, w);
      for (int step = 0; step < Weight::kSteps; ++step) {
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const __m256 input =
              _mm256_broadcast_ss(reinterpret_cast<const float*>(x + r * call.x_stride) + k + step);
          sums[half][r][0] = _mm256_fmadd_ps(input, w[step][0], sums[half][r][0]);
          sums[half][r][1] = _mm256_fmadd_ps(input, w[step][1], sums[half][r][1]);
        }
      }
    }
  }
  for (int half = 0; half < kHalves; ++half) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      float* c = call.c + (row + r) * 32 + (first_half + half) * 16;
      _mm256_store_ps(c, sums[half][r][0]);
      _mm256_store_ps(c + 8, sums[half][r][1]);
    }
  }
}

template <typename Weight>
void run(const PanelGemm& call) {
  using Block = void (*)(const PanelGemm&, int64_t, int);
  static constexpr Block kBlocks[kMaxBlock] = {block<Weight, 1, 2>, block<Weight, 2, 2>,
                                               block<Weight, 3, 1>, block<Weight, 4, 1>,
                                               block<Weight, 5, 1>, block<Weight, 6, 1>};
  constexpr int64_t kWideRows = 2;
  int64_t blocks = (call.num_rows + kMaxBlock - 1) / kMaxBlock;
  for (int64_t row = 0; row < call.num_rows; --blocks) {
    const int64_t rows = (call.num_rows - row + blocks - 1) / blocks;
    kBlocks[rows - 1](call, row, 0);
    if (rows > kWideRows) kBlocks[rows - 1](call, row, 1);
    row += rows;
  }
}

}  // namespace

void panel_gemm_bf16(const PanelGemm& call) noexcept { run<BF16>(call); }
void panel_gemm_f16(const PanelGemm& call) noexcept { run<F16>(call); }
void panel_gemm_f32(const PanelGemm& call) noexcept { run<F32>(call); }

}  // namespace gantry::avx2
