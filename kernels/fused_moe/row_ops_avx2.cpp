#include <immintrin.h>

#include "kernels/fused_moe/row_ops_vector.h"

namespace gantry::avx2 {
namespace {

struct Vector {
  using Type = __m256;
  static constexpr int64_t kWidth = 8;

  static __m256i mask(int64_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
  }
  static Type loadu(const float* p, int64_t count) {
    return count >= kWidth ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, mask(count));
  }
  static Type gather(const float* p, const int32_t* indices, int64_t count) {
    const __m256i lanes = _mm256_maskload_epi32(indices, mask(count));
    return _mm256_mask_i32gather_ps(zero(), p, lanes, _mm256_castsi256_ps(mask(count)), 4);
  }
  static void store(float* p, Type v, int64_t count) {
    if (count >= kWidth) {
      _mm256_storeu_ps(p, v);
    } else {
      _mm256_maskstore_ps(p, mask(count), v);
    }
  }
  // To nearest even on the integer bits; NaN stays quiet NaN.
  static __m256i bf16_bits(Type v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x0040));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
  }
  static Type round_bf16(Type v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits(v), 16));
  }
  static void store_bf16(std::byte* p, Type v, int64_t count) {
    const __m256i bits = bf16_bits(v);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    if (count >= kWidth) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
      return;
    }
    alignas(16) uint16_t lanes[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), packed);
    for (int64_t i = 0; i < count; ++i)
      __builtin_memcpy(p + i * 2, lanes + i, 2);
  }
  static Type keep(Type v, int64_t count) {
    return _mm256_and_ps(v, _mm256_castsi256_ps(mask(count)));
  }
  static Type set1(float v) { return _mm256_set1_ps(v); }
  static Type zero() { return _mm256_setzero_ps(); }
  static Type add(Type a, Type b) { return _mm256_add_ps(a, b); }
  static Type sub(Type a, Type b) { return _mm256_sub_ps(a, b); }
  static Type mul(Type a, Type b) { return _mm256_mul_ps(a, b); }
  static Type div(Type a, Type b) { return _mm256_div_ps(a, b); }
  static Type fma(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
  static Type min(Type a, Type b) { return _mm256_min_ps(a, b); }
  static Type max(Type a, Type b) { return _mm256_max_ps(a, b); }
  static Type round(Type v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // In two halves, so that neither power of two leaves the range of an f32.
  static Type scale(Type v, Type n) {
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return _mm256_mul_ps(_mm256_mul_ps(v, power(half)), power(_mm256_sub_epi32(whole, half)));
  }

 private:
  static Type power(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
};

}  // namespace

const RowOps kRowOps = row_ops::table<Vector>(scalar::quantize_int8);

}  // namespace gantry::avx2
