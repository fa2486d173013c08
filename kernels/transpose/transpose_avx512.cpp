#include <immintrin.h>

#include "kernels/grouped_gemm/transpose_words_avx512.h"
#include "kernels/transpose/transpose_tiles.h"

namespace gantry::avx512 {
namespace {

struct Ops {
  using Vector = __m512i;
  using Line = __m512i;
  static constexpr int64_t kVectorBytes = 64;

  static __mmask64 first(int64_t bytes) noexcept {
    return bytes >= 64 ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
  }
  static Vector load(const std::byte* p) noexcept { return _mm512_loadu_si512(p); }
  static Vector load_part(const std::byte* p, int64_t bytes) noexcept {
    return _mm512_maskz_loadu_epi8(first(bytes), p);
  }
  template <int kSize>
  static Vector interleave_low(Vector a, Vector b) noexcept {
    return kSize == 1 ? _mm512_unpacklo_epi8(a, b) : _mm512_unpacklo_epi16(a, b);
  }
  template <int kSize>
  static Vector interleave_high(Vector a, Vector b) noexcept {
    return kSize == 1 ? _mm512_unpackhi_epi8(a, b) : _mm512_unpackhi_epi16(a, b);
  }
  template <typename Store>
  static void transpose(const Vector (&rows)[16], const Store& store) noexcept {
    __m512i quarters[4][4];
#pragma GCC unroll 16
    for (int row = 0; row < 16; ++row)
      quarters[row / 4][row % 4] = rows[row];
    transpose_dwords(quarters, store);
  }
  static void store(std::byte* p, Line line) noexcept { _mm512_storeu_si512(p, line); }
  static void stream(std::byte* p, Line line) noexcept {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), line);
  }
  static void store_part(std::byte* p, Line line, int64_t bytes) noexcept {
    _mm512_mask_storeu_epi8(p, first(bytes), line);
  }
};

}  // namespace

void transpose(const TransposeCall& call) noexcept { transpose_tiles<Ops>(call); }

}  // namespace gantry::avx512
