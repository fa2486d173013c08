#include <immintrin.h>

#include <cstring>

#include "kernels/fused_moe/row_ops_vector.h"
#include "kernels/grouped_gemm/panel_gemm.h"

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

void quantize_int8(const QuantizeInt8& call) noexcept {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t r = 0; r < call.num_rows; ++r) {
    std::byte* row = call.rows + r * call.stride;
    const auto* x = reinterpret_cast<const float*>(row);
    __m512i most = _mm512_setzero_si512();  // bits of magnitudes are ordered as they are
    for (int64_t i = 0; i < call.padded; i += 16) {
      most = _mm512_max_epi32(
          most, _mm512_and_si512(_mm512_castps_si512(_mm512_loadu_ps(x + i)), magnitude));
    }
    const int bits = _mm512_reduce_max_epi32(most);
    Int8RowTail tail{};
    std::memcpy(&tail.scale, &bits, 4);
    tail.scale /= 127.0F;
    const bool finite = bits < 0x7f800000;
    const __m512 scale = _mm512_set1_ps(finite && tail.scale > 0.0F ? tail.scale : 1.0F);
    const __mmask16 keep = finite && tail.scale > 0.0F ? 0xffff : 0;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < call.padded; i += 16) {
      const __m512i code = _mm512_maskz_cvtps_epi32(
          keep, _mm512_div_ps(_mm512_loadu_ps(x + i), scale));  // reads ahead of what it writes
      sum = _mm512_add_epi32(sum, code);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), _mm512_cvtsepi32_epi8(code));
    }
    tail.sum = _mm512_reduce_add_epi32(sum);
    const int nan = 0x7fc00000;
    if (!finite) std::memcpy(&tail.scale, &nan, 4);
    std::memcpy(row + call.tail, &tail, sizeof(tail));
  }
}

const RowOps kRowOps = row_ops::table<Vector>(quantize_int8);

}  // namespace gantry::avx512
