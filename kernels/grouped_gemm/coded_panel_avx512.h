#pragma once

// Coded panels in AVX-512 registers, for files compiled for it: everything here has internal
// linkage. Codes become pairs of k in bf16, which holds the values of all but NF4's and FP4's codes
// exactly; vdpbf16ps takes the pairs as they are, FMA takes them split into even and odd k.

#include <immintrin.h>

#include <cstring>

#include "kernels/grouped_gemm/panel_gemm.h"
#include "kernels/grouped_gemm/panel_scales_avx512.h"
#include "kernels/quant/code_books.h"

namespace gantry::avx512 {
namespace {

// ---- codes -> pairs of bf16 -------------------------------------------------------------------

// A `Codes` type decodes one line: 16 lanes, kPairs pairs of k. `Line` is what is kept of a line
// between its pairs; pair<P>(line) gives 16 lanes x (even k, odd k).

__m512i nibble_table(const uint16_t (&values)[16]) {
  // vpermw looks at five bits of an index: with the table twice, the lowest bit of the next nibble
  // makes no difference.
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_broadcast_i64x4(half);
}

struct NibbleCodes {
  static constexpr int kPairs = 4;
  using Line = __m512i;
  __m512i table;

  [[nodiscard]] Line load(const std::byte* line) const { return _mm512_load_si512(line); }
  template <int kPair>
  [[nodiscard]] __m512i pair(Line line) const {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(line, 4 * kPair), table);
  }
};

struct Int4Codes : NibbleCodes {
  Int4Codes() {
    static constexpr uint16_t kValues[16] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,   //  0 ..  7
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};  // -8 .. -1
    table = nibble_table(kValues);
  }
};

struct E2M1Codes : NibbleCodes {
  E2M1Codes() {
    static constexpr uint16_t kValues[16] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
                                             0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0,
                                             0xc000, 0xc040, 0xc080, 0xc0c0};
    table = nibble_table(kValues);
  }
};

struct UInt4Codes : NibbleCodes {
  UInt4Codes() {
    static constexpr uint16_t kValues[16] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
                                             0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130,
                                             0x4140, 0x4150, 0x4160, 0x4170};
    table = nibble_table(kValues);
  }
};

struct IQ4Codes : NibbleCodes {
  IQ4Codes() {
    static constexpr uint16_t kValues[16] = {0xc2fe, 0xc2d0, 0xc2a6, 0xc282, 0xc244, 0xc20c,
                                             0xc1b0, 0xc120, 0x3f80, 0x4150, 0x41c8, 0x4218,
                                             0x4254, 0x428a, 0x42b2, 0x42e2};
    table = nibble_table(kValues);
  }
};

// Code books that bf16 does not hold: rounded to it, for rows of bf16.
struct RoundedNF4Codes : NibbleCodes {
  RoundedNF4Codes() {
    static constexpr uint16_t kValues[16] = {0xbf80, 0xbf32, 0xbf06, 0xbeca, 0xbe92, 0xbe3d,
                                             0xbdba, 0x0000, 0x3da3, 0x3e25, 0x3e7c, 0x3ead,
                                             0x3ee2, 0x3f10, 0x3f39, 0x3f80};
    table = nibble_table(kValues);
  }
};

struct RoundedFP4Codes : NibbleCodes {
  RoundedFP4Codes() {
    static constexpr uint16_t kValues[16] = {0x0000, 0x3bab, 0x3f2b, 0x3f80, 0x3eab, 0x3f00,
                                             0x3e2b, 0x3e80, 0x8000, 0xbbab, 0xbf2b, 0xbf80,
                                             0xbeab, 0xbf00, 0xbe2b, 0xbe80};
    table = nibble_table(kValues);
  }
};

// ... and exact, for rows of f32.
struct WidePair {
  __m512 even;
  __m512 odd;
};

struct BookCodes {
  static constexpr int kPairs = 4;
  using Line = __m512i;
  __m512 table;

  explicit BookCodes(const float (&values)[16]) : table(_mm512_loadu_ps(values)) {}
  [[nodiscard]] Line load(const std::byte* line) const { return _mm512_load_si512(line); }
  // vpermps looks at four bits of an index.
  template <int kPair>
  [[nodiscard]] WidePair pair(Line line) const {
    return {_mm512_permutexvar_ps(_mm512_srli_epi32(line, 4 * kPair), table),
            _mm512_permutexvar_ps(_mm512_srli_epi32(line, 16 + 4 * kPair), table)};
  }
};

struct NF4Codes : BookCodes {
  NF4Codes() : BookCodes(kNF4Values) {}
};
struct FP4Codes : BookCodes {
  FP4Codes() : BookCodes(kFP4Values) {}
};

// FP8 of 3 mantissa bits (e4m3) or 2 (e5m2).
template <int kMantissa>
struct SmallFloatCodes {
  static constexpr int kPairs = 2;
  using Line = __m512i;
  __m512i subnormals;  // bf16 of m * 2^-9 (e4m3), of m * 2^-16 (e5m2), over and over

  SmallFloatCodes() {
    static_assert(kMantissa == 2 || kMantissa == 3);
    static constexpr uint16_t kE4M3[16] = {0x0000, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20,
                                           0x3c40, 0x3c60, 0x0000, 0x3b00, 0x3b80, 0x3bc0,
                                           0x3c00, 0x3c20, 0x3c40, 0x3c60};
    static constexpr uint16_t kE5M2[16] = {0x0000, 0x3780, 0x3800, 0x3840, 0x0000, 0x3780,
                                           0x3800, 0x3840, 0x0000, 0x3780, 0x3800, 0x3840,
                                           0x0000, 0x3780, 0x3800, 0x3840};
    subnormals = nibble_table(kMantissa == 3 ? kE4M3 : kE5M2);
  }
  [[nodiscard]] Line load(const std::byte* line) const { return _mm512_load_si512(line); }
  // The byte in the upper half of a word: sign in place, exponent and mantissa some bits too high
  // and the exponent 127 - bias too small. Exponent zero is looked up.
  template <int kPair>
  [[nodiscard]] __m512i pair(Line line) const {
    constexpr int kBias = (1 << (6 - kMantissa)) - 1;
    const __m512i zero = _mm512_setzero_si512();
    const __m512i high =
        kPair == 0 ? _mm512_unpacklo_epi8(zero, line) : _mm512_unpackhi_epi8(zero, line);
    const __m512i shifted =
        _mm512_srli_epi16(_mm512_and_si512(high, _mm512_set1_epi16(0x7f00)), 1 + kMantissa);
    const __mmask32 subnormal = _mm512_cmplt_epu16_mask(shifted, _mm512_set1_epi16(0x80));
    const __m512i normal = _mm512_add_epi16(shifted, _mm512_set1_epi16((127 - kBias) << 7));
    const __m512i magnitude = _mm512_mask_permutexvar_epi16(
        normal, subnormal, _mm512_srli_epi16(shifted, 7 - kMantissa), subnormals);
    constexpr int kMagnitudeOrSign = 0xf8;  // a | (b & c)
    return _mm512_ternarylogic_epi32(magnitude, high, _mm512_set1_epi16(-0x8000), kMagnitudeOrSign);
  }
};
using E4M3Codes = SmallFloatCodes<3>;
using E5M2Codes = SmallFloatCodes<2>;

struct Int8Codes {
  static constexpr int kPairs = 2;
  using Line = __m512i;

  [[nodiscard]] Line load(const std::byte* line) const { return _mm512_load_si512(line); }
  // Integers of 8 bits are exact in bf16: the lower half of their f32 is zero.
  template <int kPair>
  [[nodiscard]] __m512i pair(Line line) const {
    const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(line, kPair == 0 ? 24 : 8), 24);
    const __m512i odd = _mm512_srai_epi32(kPair == 0 ? _mm512_slli_epi32(line, 16) : line, 24);
    const __m512i even_bits = _mm512_castps_si512(_mm512_cvtepi32_ps(even));
    const __m512i odd_bits = _mm512_castps_si512(_mm512_cvtepi32_ps(odd));
    return _mm512_or_si512(_mm512_srli_epi32(even_bits, 16), odd_bits);
  }
};

[[maybe_unused]] __m512 even_of(const WidePair& pair) { return pair.even; }
[[maybe_unused]] __m512 odd_of(const WidePair& pair) { return pair.odd; }
[[maybe_unused]] __m512 even_of(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
[[maybe_unused]] __m512 odd_of(__m512i pairs) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

}  // namespace
}  // namespace gantry::avx512
