// 16 weights at a time. Divisions, not multiplications by an inverse: exporters divide, and codes
// are to be theirs.

#include <immintrin.h>

#include "kernels/quant/quantize_weight_rows.h"

namespace gantry::avx512 {
namespace {

constexpr int64_t kWidth = 16;

__mmask16 mask_of(int64_t count) {
  return static_cast<__mmask16>(count >= kWidth ? 0xffffu : (1u << count) - 1u);
}

__m512i magnitude_of(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

__m512i sign_at(__m512 x, unsigned position) {
  return _mm512_slli_epi32(_mm512_srli_epi32(_mm512_castps_si512(x), 31), position);
}

// As round_to_e4m3: normal codes keep 3 of 23 mantissa bits; below 2^-6 the last place of a sum
// with 1.5 * 2^14 is 2^-9, and its low bits are the code.
struct E4M3 {
  __m512i operator()(__m512 ratio) const {
    const __m512i magnitude =
        _mm512_min_epu32(magnitude_of(ratio), _mm512_castps_si512(_mm512_set1_ps(448.0F)));
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(magnitude, _mm512_set1_epi32(0x7ffff)), odd);
    const __m512i normal =
        _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), _mm512_set1_epi32(120 << 3));
    const __m512 magic = _mm512_set1_ps(0x1.8p14F);
    const __m512i small =
        _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), magic)),
                         _mm512_castps_si512(magic));
    const __mmask16 is_small =
        _mm512_cmplt_epu32_mask(magnitude, _mm512_castps_si512(_mm512_set1_ps(0x1p-6F)));
    return _mm512_or_si512(_mm512_mask_mov_epi32(normal, is_small, small), sign_at(ratio, 7));
  }
};

// The code is the number of thresholds that are passed. Halfway between an odd and an even code
// the even one wins: below odd codes equality is not enough.
struct E2M1 {
  __m512i operator()(__m512 ratio) const {
    const __m512 magnitude = _mm512_castsi512_ps(magnitude_of(ratio));
    const __m512i one = _mm512_set1_epi32(1);
    __m512i code = sign_at(ratio, 3);
    const auto count = [&](__mmask16 passed) {
      code = _mm512_mask_add_epi32(code, passed, code, one);
    };
    count(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0.25F), _CMP_GT_OQ));
    count(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0.75F), _CMP_GE_OQ));
    count(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(1.25F), _CMP_GT_OQ));
    count(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(1.75F), _CMP_GE_OQ));
    count(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(2.5F), _CMP_GT_OQ));
    count(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(3.5F), _CMP_GE_OQ));
    count(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(5.0F), _CMP_GT_OQ));
    return code;
  }
};

struct Integer {
  __m512i zero;
  __m512i largest;

  __m512i operator()(__m512 ratio) const {
    const __m512 far = _mm512_set1_ps(1024.0F);  // beyond every code from every zero point
    const __m512 clamped =
        _mm512_min_ps(_mm512_max_ps(ratio, _mm512_sub_ps(_mm512_setzero_ps(), far)), far);
    const __m512i steps =
        _mm512_cvt_roundps_epi32(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_min_epi32(_mm512_max_epi32(_mm512_add_epi32(steps, zero), _mm512_setzero_si512()),
                            largest);
  }
};

template <typename Code>
void code_group(const float* weights, int64_t n, float step, const Code& code, uint8_t* codes) {
  const __m512 divisor = _mm512_set1_ps(step);
  for (int64_t i = 0; i < n; i += kWidth) {
    const __mmask16 mask = mask_of(n - i);
    const __m512 ratio = _mm512_div_ps(_mm512_maskz_loadu_ps(mask, weights + i), divisor);
    _mm512_mask_cvtepi32_storeu_epi8(codes + i, mask, code(ratio));
  }
}

template <typename CodeOfGroup>
void code_row(const CodeRow& call, const CodeOfGroup& code_of_group) {
  for (int64_t g = 0, begin = 0; begin < call.n; ++g, begin += call.group) {
    const int64_t count = call.n - begin < call.group ? call.n - begin : call.group;
    code_group(call.weights + begin, count, call.steps[g], code_of_group(g), call.codes + begin);
  }
}

void codes(const CodeRow& call) noexcept {
  switch (call.element) {
    case WeightElement::kE4M3:
      return code_row(call, [](int64_t) { return E4M3(); });
    case WeightElement::kE2M1:
      return code_row(call, [](int64_t) { return E2M1(); });
    default: {
      const __m512i largest = _mm512_set1_epi32((1 << bits_of(call.element)) - 1);
      return code_row(call, [&](int64_t g) {
        return Integer{_mm512_set1_epi32(call.zeros[g]), largest};
      });
    }
  }
}

void ranges(const RangeRow& call) noexcept {
  for (int64_t g = 0, begin = 0; begin < call.n; ++g, begin += call.group) {
    const int64_t count = call.n - begin < call.group ? call.n - begin : call.group;
    const float* weights = call.weights + begin;
    const __m512 first = _mm512_set1_ps(weights[0]);
    __m512 low = first;
    __m512 high = first;
    for (int64_t i = 0; i < count; i += kWidth) {
      const __m512 x = _mm512_mask_loadu_ps(first, mask_of(count - i), weights + i);
      low = _mm512_min_ps(low, x);
      high = _mm512_max_ps(high, x);
    }
    call.low[g] = _mm512_reduce_min_ps(low);
    call.high[g] = _mm512_reduce_max_ps(high);
  }
}

void pack_nibbles(const uint8_t* codes, int64_t n, uint8_t* packed) noexcept {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    // Of each 16-bit pair (low, high): low | high << 4, which cvtepi16 keeps.
    const __m512i pairs = _mm512_loadu_si512(codes + i);
    const __m512i bytes = _mm512_or_si512(pairs, _mm512_srli_epi16(pairs, 4));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + i / 2), _mm512_cvtepi16_epi8(bytes));
  }
  for (; i + 1 < n; i += 2)
    packed[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
  if (n % 2 != 0) packed[n / 2] = codes[n - 1];
}

}  // namespace

const WeightRowOps kWeightRowOps = {ranges, codes, pack_nibbles};

}  // namespace gantry::avx512
