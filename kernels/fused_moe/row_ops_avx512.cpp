#include <immintrin.h>

#include "kernels/fused_moe/row_ops_vector.h"

namespace gantry::avx512 {
namespace {

struct Vector {
  using Type = __m512;
  static constexpr int64_t kWidth = 16;

  static __mmask16 mask(int64_t count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u);
  }
  static Type loadu(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(mask(count), p); }
  static void store(float* p, Type v, int64_t count) {
    if (count >= kWidth) {
      _mm512_storeu_ps(p, v);
    } else {
      _mm512_mask_storeu_ps(p, mask(count), v);
    }
  }
  // To nearest even on the integer bits (vcvtneps2bf16 would flush denormals); NaN stays quiet NaN.
  static __m512i bf16_bits(Type v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x0040));
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
  }
  static Type round_bf16(Type v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(bf16_bits(v), 16));
  }
  static void store_bf16(std::byte* p, Type v, int64_t count) {
    const __m256i packed = _mm512_cvtepi32_epi16(bf16_bits(v));
    if (count >= kWidth) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
    } else {
      _mm256_mask_storeu_epi16(p, mask(count), packed);
    }
  }
  static Type keep(Type v, int64_t count) { return _mm512_maskz_mov_ps(mask(count), v); }
  static Type set1(float v) { return _mm512_set1_ps(v); }
  static Type zero() { return _mm512_setzero_ps(); }
  static Type add(Type a, Type b) { return _mm512_add_ps(a, b); }
  static Type sub(Type a, Type b) { return _mm512_sub_ps(a, b); }
  static Type mul(Type a, Type b) { return _mm512_mul_ps(a, b); }
  static Type div(Type a, Type b) { return _mm512_div_ps(a, b); }
  static Type fma(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
  static Type min(Type a, Type b) { return _mm512_min_ps(a, b); }
  static Type max(Type a, Type b) { return _mm512_max_ps(a, b); }
  static Type round(Type v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Type scale(Type v, Type n) { return _mm512_scalef_ps(v, n); }
};

}  // namespace

const RowOps kRowOps = row_ops::table<Vector>();

}  // namespace gantry::avx512
