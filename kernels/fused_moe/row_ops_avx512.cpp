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
  static Type gather(const float* p, const int32_t* indices, int64_t count) {
    const __m512i lanes = _mm512_maskz_loadu_epi32(mask(count), indices);
    return _mm512_mask_i32gather_ps(zero(), mask(count), lanes, p, 4);
  }
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

// Eight codes at a time: their sum with 128 added to each is one unsigned sum of differences.
__m128i sum_of_eight(__m128i codes) {
  const __m128i offset = _mm_set1_epi8(static_cast<char>(0x80));
  return _mm_sad_epu8(_mm_xor_si128(codes, offset), _mm_setzero_si128());
}

void sum_int8_groups(const QuantizeInt8& call, std::byte* row) {
  std::byte* sums = row + call.tail + sizeof(Int8RowTail);
  for (int64_t begin = 0; begin < call.padded; begin += call.group, sums += 4) {
    const int64_t end = begin + call.group < call.padded ? begin + call.group : call.padded;
    __m128i sum = _mm_setzero_si128();
    int64_t i = begin;
    for (; i + 16 <= end; i += 16) {
      sum = _mm_add_epi64(sum,
                          sum_of_eight(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i))));
    }
    int64_t total = 0;
    if (i < end) {
      total = _mm_cvtsi128_si64(
          sum_of_eight(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + i))));
    }
    total += _mm_cvtsi128_si64(sum) + _mm_extract_epi64(sum, 1) - 128 * (end - begin);
    const auto of_group = static_cast<int32_t>(total);
    std::memcpy(sums, &of_group, 4);
  }
}

}  // namespace

void quantize_int8(const QuantizeInt8& call) noexcept {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m128i nibble_order = _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  constexpr int kInfinity = 0x7f800000;
  const bool fixed = call.static_scale > 0.0F;
  for (int64_t r = 0; r < call.num_rows; ++r) {
    std::byte* row = call.rows + r * call.stride;
    const float* x = call.x + (call.token != nullptr ? call.token[r] : r) * call.x_stride;
    const __m512 factor = _mm512_set1_ps(
        call.factor == nullptr ? 1.0F : call.factor[call.choice != nullptr ? call.choice[r] : r]);
    __m512i most = _mm512_setzero_si512();  // bits of magnitudes are ordered as they are
    for (int64_t i = 0; i < call.n; i += 16) {
      const __m512 value = _mm512_mul_ps(Vector::loadu(x + i, call.n - i), factor);
      most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(value), magnitude));
    }
    const int found = _mm512_reduce_max_epi32(most);
    int bits = found;
    if (call.amax != nullptr) std::memcpy(&bits, call.amax + r, 4);
    Int8RowTail tail{};
    std::memcpy(&tail.scale, &bits, 4);
    tail.scale = fixed ? call.static_scale : tail.scale / 127.0F;
    const bool good = fixed ? found <= kInfinity : found < kInfinity && bits < kInfinity;
    const __mmask16 keep = good && tail.scale > 0.0F ? 0xffff : 0;
    const __m512 scale = _mm512_set1_ps(keep != 0 ? tail.scale : 1.0F);
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < call.padded; i += 16) {  // reads ahead of what it writes
      const __m512 value = _mm512_mul_ps(
          Vector::loadu(x + i, row_ops::clamp_count(call.n - i, Vector::kWidth)), factor);
      // Beyond an int32 there is only one code for both signs.
      const __m512 ratio =
          _mm512_max_ps(_mm512_set1_ps(-128.0F),
                        _mm512_min_ps(_mm512_set1_ps(127.0F), _mm512_div_ps(value, scale)));
      const __m512i code = _mm512_maskz_cvtps_epi32(keep, ratio);
      sum = _mm512_add_epi32(sum, code);
      __m128i bytes = _mm512_cvtsepi32_epi8(code);
      if (call.nibble_order) bytes = _mm_shuffle_epi8(bytes, nibble_order);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + i), bytes);
    }
    tail.sum = _mm512_reduce_add_epi32(sum);
    const int nan = 0x7fc00000;
    if (!good) std::memcpy(&tail.scale, &nan, 4);
    std::memcpy(row + call.tail, &tail, sizeof(tail));
    if (call.group > 0) sum_int8_groups(call, row);
  }
}

const RowOps kRowOps = row_ops::table<Vector>(quantize_int8);

}  // namespace gantry::avx512
