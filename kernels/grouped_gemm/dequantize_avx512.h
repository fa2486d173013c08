#pragma once

// Decodes pieces of coded panels, over the type that is stored. For files compiled for AVX-512, as
// coded_panel_avx512.h.

#include "kernels/grouped_gemm/coded_panel_avx512.h"
#include "kernels/grouped_gemm/fetch_codes_avx512.h"

namespace gantry::avx512 {
namespace {

struct GroupFactors {
  Scales scales;
  Scales zeros;
  Scales minimums;
};

template <typename Store, typename Codes, int kPair>
void dequantize_pair(const Codes& codes, typename Codes::Line line, int half,
                     const GroupFactors& factors, std::byte* out) {
  const auto pairs = codes.template pair<kPair>(line);
  const __m512 scale = factors.scales.half[half];
  const __m512 zero = factors.zeros.half[half];
  const __m512 minimum = factors.minimums.half[half];
  // Less +0 where there is no minimum, which changes nothing.
  Store::store(out + kPair * Store::kPairBytes, half,
               _mm512_sub_ps(_mm512_mul_ps(_mm512_sub_ps(even_of(pairs), zero), scale), minimum),
               _mm512_sub_ps(_mm512_mul_ps(_mm512_sub_ps(odd_of(pairs), zero), scale), minimum));
}

template <typename Store, typename Codes>
void dequantize_codes(const DequantizePanel& call) {
  const Codes codes;
  const CodedPanel& panel = *call.coded;
  constexpr int64_t kDepth = 2 * Codes::kPairs;
  const int64_t end = call.k_begin + call.k_count;
  const int64_t group = panel.format.scale != ScaleType::kNone ? panel.format.group : end;
  std::byte* out = call.out;
  FetchAhead fetch(call.panel + panel.bytes, call.next);
  for (int64_t k = call.k_begin; k < end;) {
    const int64_t g = k / group;
    const int64_t group_end = (g + 1) * group < end ? (g + 1) * group : end;
    GroupFactors factors;
    factors.scales =
        load_scales(call.panel + panel.scales + g * panel.scale_bytes, panel.format.scale);
    factors.zeros.half[0] = factors.zeros.half[1] = _mm512_setzero_ps();
    factors.minimums = factors.zeros;
    if (panel.format.super_group > 0) {
      multiply_supers(factors.scales, panel, call.panel + panel.super_scales, g);
    }
    if (panel.format.minimums) factors.minimums = load_minimums(call.panel, panel, g);
    if (panel.format.zero_points) factors.zeros = load_zeros(call.panel + panel.zeros + g * 32);
    for (; k < group_end; k += kDepth) {
      const std::byte* line = call.panel + panel.codes + k / kDepth * 128;
      fetch.step(line);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const auto loaded = codes.load(line + half * 64);
        dequantize_pair<Store, Codes, 0>(codes, loaded, half, factors, out);
        dequantize_pair<Store, Codes, 1>(codes, loaded, half, factors, out);
        if constexpr (Codes::kPairs == 4) {
          dequantize_pair<Store, Codes, 2>(codes, loaded, half, factors, out);
          dequantize_pair<Store, Codes, 3>(codes, loaded, half, factors, out);
        }
      }
      out += Codes::kPairs * Store::kPairBytes;
    }
  }
}

template <typename Store>
void dequantize(const DequantizePanel& call) {
  switch (call.coded->format.element) {
    case WeightElement::kE4M3:
      return dequantize_codes<Store, E4M3Codes>(call);
    case WeightElement::kInt8:
      return dequantize_codes<Store, Int8Codes>(call);
    case WeightElement::kInt4:
      return dequantize_codes<Store, Int4Codes>(call);
    case WeightElement::kE2M1:
      return dequantize_codes<Store, E2M1Codes>(call);
    case WeightElement::kE5M2:
      return dequantize_codes<Store, E5M2Codes>(call);
    case WeightElement::kUInt4:
      return dequantize_codes<Store, UInt4Codes>(call);
    case WeightElement::kNF4:
      return dequantize_codes<Store, NF4Codes>(call);
    case WeightElement::kFP4:
      return dequantize_codes<Store, FP4Codes>(call);
    case WeightElement::kIQ4:
      return dequantize_codes<Store, IQ4Codes>(call);
    case WeightElement::kPlain:
      return;
  }
}

}  // namespace
}  // namespace gantry::avx512
