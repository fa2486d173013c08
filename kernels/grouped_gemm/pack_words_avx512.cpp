#include "kernels/grouped_gemm/pack_words.h"
#include "kernels/grouped_gemm/transpose_words_avx512.h"

// 16 rows x 16 words at a time; what is left of them goes the scalar way.

namespace gantry::avx512 {
namespace {

// Bytes 0 1 | 2 3 of four words in turn to 0 1 of all, then 2 3 of all.
__m512i split_pairs(__m512i line) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  return _mm512_shuffle_epi8(line, order);
}

// Nibbles 0 .. 7 of each word to 0 2 4 6 1 3 5 7.
__m512i evens_first(__m512i line) {
  const __m512i mask = _mm512_set1_epi32(0x00f000f0);
  const __m512i moved = _mm512_and_si512(_mm512_xor_si512(line, _mm512_srli_epi32(line, 4)), mask);
  line = _mm512_xor_si512(line, _mm512_xor_si512(moved, _mm512_slli_epi32(moved, 4)));
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  return _mm512_shuffle_epi8(line, order);
}

template <typename Reorder>
void pack_tiles(const PackWords& call, int64_t num_words, const Reorder& reorder) {
  const __m512i flip = _mm512_set1_epi32(static_cast<int>(call.flip));
  for (int64_t w = 0; w < num_words; w += 16) {
    transpose_tile(call.source + w * 4, call.row_stride, call.target + w * 128,
                   [&](__m512i line) { return reorder(_mm512_xor_si512(line, flip)); });
  }
}

}  // namespace

void pack_words(const PackWords& call) noexcept {
  PackWords rest = call;
  if (call.num_rows == 16) {
    const int64_t whole = call.num_words / 16 * 16;
    switch (call.order) {
      case WordOrder::kBytes:
        pack_tiles(call, whole, [](__m512i line) { return line; });
        break;
      case WordOrder::kPairs:
        pack_tiles(call, whole, [](__m512i line) { return split_pairs(line); });
        break;
      case WordOrder::kNibblePairs:
        pack_tiles(call, whole, [](__m512i line) { return evens_first(line); });
        break;
    }
    rest.source += whole * 4;
    rest.target += whole * 128;
    rest.num_words -= whole;
    _mm_sfence();
  }
  scalar::pack_words(rest);
}

}  // namespace gantry::avx512
