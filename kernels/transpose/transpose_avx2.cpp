#include <immintrin.h>

#include "kernels/transpose/transpose_tiles.h"

namespace gantry::avx2 {
namespace {

struct Ops {
  using Vector = __m256i;
  struct Line {
    __m256i low;
    __m256i high;
  };
  static constexpr int64_t kVectorBytes = 32;

  static Vector load(const std::byte* p) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Vector load_part(const std::byte* p, int64_t bytes) noexcept {
    alignas(32) std::byte piece[32] = {};
    for (int64_t b = 0; b < bytes && b < 32; ++b)
      piece[b] = p[b];
    return load(piece);
  }
  template <int kSize>
  static Vector interleave_low(Vector a, Vector b) noexcept {
    return kSize == 1 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpacklo_epi16(a, b);
  }
  template <int kSize>
  static Vector interleave_high(Vector a, Vector b) noexcept {
    return kSize == 1 ? _mm256_unpackhi_epi8(a, b) : _mm256_unpackhi_epi16(a, b);
  }

  // 8 x 8 dwords: within 128-bit lanes of 4 rows each, then the lanes of both halves change places.
  static void transpose_8x8(const Vector* rows, Vector (&columns)[8]) noexcept {
    Vector lanes[2][4];  // [half][p]: dword p and p + 4 of rows 4 half .. 4 half + 3
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Vector* v = rows + 4 * half;
      const Vector low01 = _mm256_unpacklo_epi32(v[0], v[1]);
      const Vector high01 = _mm256_unpackhi_epi32(v[0], v[1]);
      const Vector low23 = _mm256_unpacklo_epi32(v[2], v[3]);
      const Vector high23 = _mm256_unpackhi_epi32(v[2], v[3]);
      lanes[half][0] = _mm256_unpacklo_epi64(low01, low23);
      lanes[half][1] = _mm256_unpackhi_epi64(low01, low23);
      lanes[half][2] = _mm256_unpacklo_epi64(high01, high23);
      lanes[half][3] = _mm256_unpackhi_epi64(high01, high23);
    }
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      columns[p] = _mm256_permute2x128_si256(lanes[0][p], lanes[1][p], 0x20);
      columns[p + 4] = _mm256_permute2x128_si256(lanes[0][p], lanes[1][p], 0x31);
    }
  }
  template <typename Store>
  static void transpose(const Vector (&rows)[16], const Store& store) noexcept {
    Vector low[8];
    Vector high[8];
    transpose_8x8(rows, low);
    transpose_8x8(rows + 8, high);
#pragma GCC unroll 8
    for (int column = 0; column < 8; ++column)
      store(column, Line{low[column], high[column]});
  }
  static void store(std::byte* p, Line line) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), line.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), line.high);
  }
  static void stream(std::byte* p, Line line) noexcept {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), line.low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p + 32), line.high);
  }
  static void store_part(std::byte* p, Line line, int64_t bytes) noexcept {
    alignas(32) std::byte piece[64];
    store(piece, line);
    for (int64_t b = 0; b < bytes; ++b)
      p[b] = piece[b];
  }
};

}  // namespace

void transpose(const TransposeCall& call) noexcept { transpose_tiles<Ops>(call); }

}  // namespace gantry::avx2
