// Decodes pieces of coded panels to f32, eight lanes at a time. A lane's codes of one line share a
// 32-bit word, out of which each k is shifted.

#include <immintrin.h>

#include <cstddef>

#include "kernels/grouped_gemm/panel_gemm.h"
#include "kernels/quant/code_books.h"

namespace gantry::avx2 {
namespace {

constexpr int kQuarters = 4;  // of 32 lanes

// A `Codes` type decodes 8 lanes of a line: load() gives a word per lane, value<I>() k = I of it.

struct Int4Codes {
  static constexpr int64_t kDepth = 8;
  // Nibble k / 2 of the lane's word k % 2.
  template <int kK>
  static constexpr int kShift = kK % 2 * 16 + kK / 2 * 4;

  static __m256i load(const std::byte* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <int kK>
  [[nodiscard]] __m256 value(__m256i words) const {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 28 - kShift<kK>), 28));
  }
};

struct E2M1Codes {
  static constexpr int64_t kDepth = 8;
  __m256 magnitudes = _mm256_setr_ps(0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F);
  __m256 sign = _mm256_set1_ps(-0.0F);

  static __m256i load(const std::byte* p) { return Int4Codes::load(p); }
  template <int kK>
  [[nodiscard]] __m256 value(__m256i words) const {
    constexpr int kShift = Int4Codes::kShift<kK>;
    // The permutation looks at three bits of an index.
    const __m256 magnitude = _mm256_permutevar8x32_ps(magnitudes, _mm256_srli_epi32(words, kShift));
    const __m256 signs = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - kShift));
    return _mm256_or_ps(magnitude, _mm256_and_ps(signs, sign));
  }
};

struct UInt4Codes {
  static constexpr int64_t kDepth = 8;

  static __m256i load(const std::byte* p) { return Int4Codes::load(p); }
  template <int kK>
  [[nodiscard]] __m256 value(__m256i words) const {
    return _mm256_cvtepi32_ps(
        _mm256_srli_epi32(_mm256_slli_epi32(words, 28 - Int4Codes::kShift<kK>), 28));
  }
};

// Looked up in two tables of eight; bit 3 of the code, brought to the sign, chooses between them.
struct BookCodes {
  static constexpr int64_t kDepth = 8;
  __m256 low;
  __m256 high;

  static __m256i load(const std::byte* p) { return Int4Codes::load(p); }
  template <int kK>
  [[nodiscard]] __m256 value(__m256i words) const {
    constexpr int kShift = Int4Codes::kShift<kK>;
    const __m256i index = _mm256_srli_epi32(words, kShift);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                            _mm256_permutevar8x32_ps(high, index),
                            _mm256_castsi256_ps(_mm256_slli_epi32(words, 28 - kShift)));
  }
};

struct NF4Codes : BookCodes {
  NF4Codes() : BookCodes{_mm256_loadu_ps(kNF4Values), _mm256_loadu_ps(kNF4Values + 8)} {}
};
struct FP4Codes : BookCodes {
  FP4Codes() : BookCodes{_mm256_loadu_ps(kFP4Values), _mm256_loadu_ps(kFP4Values + 8)} {}
};
struct IQ4Codes : BookCodes {
  static __m256 widened(const int8_t* eight) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight))));
  }
  IQ4Codes() : BookCodes{widened(kIQ4Values), widened(kIQ4Values + 8)} {}
};

struct Int8Codes {
  static constexpr int64_t kDepth = 4;

  static __m256i load(const std::byte* p) { return Int4Codes::load(p); }
  template <int kK>
  [[nodiscard]] __m256 value(__m256i words) const {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 24 - 8 * kK), 24));
  }
};

// The FP8 code in the upper byte of each word as f32: exponent and mantissa become those of a tiny
// number (subnormals, too), then a power of two is exact.
template <int kShift>
__m256 fp8_values(__m256i words, float power) {
  const __m256i magnitude = _mm256_set1_epi32(0x7f000000);
  const __m256 tiny =
      _mm256_castsi256_ps(_mm256_srli_epi32(_mm256_and_si256(words, magnitude), kShift));
  return _mm256_or_ps(_mm256_mul_ps(tiny, _mm256_set1_ps(power)),
                      _mm256_and_ps(_mm256_castsi256_ps(words), _mm256_set1_ps(-0.0F)));
}

__m256 e4m3_values(__m256i words) { return fp8_values<4>(words, 0x1p120F); }
__m256 e5m2_values(__m256i words) { return fp8_values<3>(words, 0x1p112F); }

template <__m256 (*kValues)(__m256i words)>
struct FP8Codes {
  static constexpr int64_t kDepth = 4;

  static __m256i load(const std::byte* p) { return Int4Codes::load(p); }
  // Unpacked into the upper bytes of 16-bit words, k and k + 1 of a lane are one 32-bit word.
  template <int kK>
  [[nodiscard]] __m256 value(__m256i words) const {
    const __m256i zero = _mm256_setzero_si256();
    const __m256i pairs =
        kK < 2 ? _mm256_unpacklo_epi8(zero, words) : _mm256_unpackhi_epi8(zero, words);
    return kValues(kK % 2 == 0 ? _mm256_slli_epi32(pairs, 16) : pairs);
  }
};

__m256i widened(const std::byte* eight_bytes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight_bytes)));
}

__m256 load_scales(const std::byte* group, ScaleType type, int quarter) {
  const auto* halves = reinterpret_cast<const __m128i*>(group) + quarter;
  switch (type) {
    case ScaleType::kF32:
      return _mm256_load_ps(reinterpret_cast<const float*>(group) + quarter * 8);
    case ScaleType::kF16:
      return _mm256_cvtph_ps(_mm_load_si128(halves));
    case ScaleType::kBF16:
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_load_si128(halves)), 16));
    case ScaleType::kE8M0:  // 2^(c - 127); c = 0 is half of the smallest normal number
      return _mm256_castsi256_ps(_mm256_max_epi32(
          _mm256_slli_epi32(widened(group + quarter * 8), 23), _mm256_set1_epi32(1 << 22)));
    case ScaleType::kE4M3:
      return e4m3_values(_mm256_slli_epi32(widened(group + quarter * 8), 24));
    case ScaleType::kInt8:
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group + quarter * 8))));
    case ScaleType::kNone:
      break;
  }
  return _mm256_set1_ps(1.0F);
}

struct Factors {
  __m256 scale;
  __m256 zero;
  __m256 minimum;
};

// Scales or minimums of group g, both levels multiplied.
__m256 load_factors(const DequantizePanel& call, int64_t factors, int64_t supers, int64_t g,
                    int quarter) {
  const CodedPanel& panel = *call.coded;
  const __m256 of_group =
      load_scales(call.panel + factors + g * panel.scale_bytes, panel.format.scale, quarter);
  if (panel.format.super_group == 0) return of_group;
  return _mm256_mul_ps(of_group, load_scales(call.panel + supers + (g >> panel.super_shift) * 64,
                                             ScaleType::kF16, quarter));
}

template <typename Codes, int kK>
void decode(const Codes& codes, __m256i words, const Factors& factors, float* out) {
  const __m256 less_zero = _mm256_sub_ps(codes.template value<kK>(words), factors.zero);
  // Less +0 where there is no minimum, which changes nothing.
  _mm256_store_ps(out + kK * 32,
                  _mm256_sub_ps(_mm256_mul_ps(less_zero, factors.scale), factors.minimum));
}

template <typename Codes>
void dequantize(const DequantizePanel& call) {
  const Codes codes;
  const CodedPanel& panel = *call.coded;
  const int64_t end = call.k_begin + call.k_count;
  const int64_t group = panel.format.scale != ScaleType::kNone ? panel.format.group : end;
  for (int64_t begin = call.k_begin; begin < end;) {
    const int64_t g = begin / group;
    const int64_t group_end = (g + 1) * group < end ? (g + 1) * group : end;
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      Factors factors{load_factors(call, panel.scales, panel.super_scales, g, quarter),
                      _mm256_setzero_ps(), _mm256_setzero_ps()};
      if (panel.format.minimums) {
        factors.minimum = load_factors(call, panel.minimums, panel.super_minimums, g, quarter);
      }
      if (panel.format.zero_points) {
        factors.zero = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(
            reinterpret_cast<const __m128i*>(call.panel + panel.zeros + g * 32 + quarter * 8))));
      }
      float* out = reinterpret_cast<float*>(call.out) + (begin - call.k_begin) * 32 + quarter * 8;
      const std::byte* line = call.panel + panel.codes + begin / Codes::kDepth * 128 + quarter * 32;
      for (int64_t k = begin; k < group_end; k += Codes::kDepth) {
        const __m256i words = Codes::load(line);
        decode<Codes, 0>(codes, words, factors, out);
        decode<Codes, 1>(codes, words, factors, out);
        decode<Codes, 2>(codes, words, factors, out);
        decode<Codes, 3>(codes, words, factors, out);
        if constexpr (Codes::kDepth == 8) {
          decode<Codes, 4>(codes, words, factors, out);
          decode<Codes, 5>(codes, words, factors, out);
          decode<Codes, 6>(codes, words, factors, out);
          decode<Codes, 7>(codes, words, factors, out);
        }
        line += 128;
        out += Codes::kDepth * 32;
      }
    }
    begin = group_end;
  }
}

}  // namespace

void dequantize_f32(const DequantizePanel& call) noexcept {
  switch (call.coded->format.element) {
    case WeightElement::kE4M3:
      return dequantize<FP8Codes<e4m3_values>>(call);
    case WeightElement::kE5M2:
      return dequantize<FP8Codes<e5m2_values>>(call);
    case WeightElement::kUInt4:
      return dequantize<UInt4Codes>(call);
    case WeightElement::kNF4:
      return dequantize<NF4Codes>(call);
    case WeightElement::kFP4:
      return dequantize<FP4Codes>(call);
    case WeightElement::kIQ4:
      return dequantize<IQ4Codes>(call);
    case WeightElement::kInt8:
      return dequantize<Int8Codes>(call);
    case WeightElement::kInt4:
      return dequantize<Int4Codes>(call);
    case WeightElement::kE2M1:
      return dequantize<E2M1Codes>(call);
    case WeightElement::kPlain:
      return;
  }
}

}  // namespace gantry::avx2
