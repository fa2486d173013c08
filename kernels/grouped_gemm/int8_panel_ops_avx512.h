#pragma once

// What surrounds the tiles of amx_int8_panel.h, for files compiled for AVX-512.

#include <immintrin.h>

#include <cstring>

#include "kernels/grouped_gemm/amx_int8_panel.h"
#include "kernels/grouped_gemm/panel_scales_avx512.h"
#include "kernels/quant/code_books.h"

namespace gantry::avx512 {
namespace {

// Every kind of 4-bit codes that are integers, by a table of 16 values; FP4 counts halves.
__m128i int8_table(WeightElement element) {
  switch (element) {
    case WeightElement::kE2M1:
      return _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    case WeightElement::kUInt4:
      return _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    case WeightElement::kIQ4:
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIQ4Values));
    default:
      return _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
  }
}

struct Int8PanelOps {
  static void decode(const PanelGemm& call, int64_t k, int64_t count, std::byte* out) {
    const CodedPanel& panel = *call.coded;
    const __m512i low = _mm512_set1_epi8(0x0f);
    const __m512i table = _mm512_broadcast_i32x4(int8_table(panel.format.element));
    const std::byte* line = call.panel + panel.codes + k / 8 * 128;
    for (int64_t i = 0; i < count; i += 8, line += 128, out += 256) {
      for (int half = 0; half < 2; ++half) {
        const __m512i codes = _mm512_load_si512(line + half * 64);
        _mm512_store_si512(out + half * 64,
                           _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low)));
        _mm512_store_si512(
            out + 128 + half * 64,
            _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low)));
      }
    }
  }

  static void add_group(const amx_int8::GroupSums& group) {
    const PanelGemm& call = group.call;
    const CodedPanel& panel = *call.coded;
    const int unit = panel.format.element == WeightElement::kE2M1 ? 1 : 0;
    Scales scales = load_scales(call.panel + panel.scales + group.group * panel.scale_bytes,
                                panel.format.scale);
    if (panel.format.super_group > 0) {
      multiply_supers(scales, panel, call.panel + panel.super_scales, group.group);
    }
    Scales least;
    least.half[0] = least.half[1] = _mm512_setzero_ps();
    if (panel.format.minimums) least = load_minimums(call.panel, panel, group.group);
    const bool zeros = panel.format.zero_points;
    const std::byte* zero_at = call.panel + panel.zeros + group.group * 32;
    const std::byte* x_sums = call.x + group.row * call.x_stride + call.x_sums +
                              static_cast<int64_t>(sizeof(Int8RowTail)) + group.group * 4;
    for (int half = 0; half < 2; ++half) {
      const __m512i shift = zeros ? _mm512_slli_epi32(load_zero_codes(zero_at + half * 16),
                                                      static_cast<unsigned>(unit))
                                  : _mm512_setzero_si512();
      for (int64_t r = 0; r < group.rows; ++r) {
        float* c = call.c + (group.row + r) * 32 + half * 16;
        __m512i sum = _mm512_load_si512(group.sums + r * 32 + half * 16);
        int x = 0;
        if (panel.format.needs_sums()) std::memcpy(&x, x_sums + r * call.x_stride, 4);
        if (zeros) {
          sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(_mm512_set1_epi32(x), shift));
        }
        __m512 total = group.group == 0 ? _mm512_setzero_ps() : _mm512_load_ps(c);
        total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales.half[half], total);
        if (panel.format.minimums) {
          total = _mm512_fnmadd_ps(_mm512_set1_ps(static_cast<float>(x)), least.half[half], total);
        }
        _mm512_store_ps(c, total);
      }
    }
  }

  static void finish(const PanelGemm& call, int64_t row, int64_t rows) {
    const CodedPanel& panel = *call.coded;
    const float unit = panel.format.element == WeightElement::kE2M1 ? 0.5F : 1.0F;
    Scales last;
    last.half[0] = last.half[1] = _mm512_set1_ps(1.0F);
    if (panel.format.output_scale)
      last = load_scales(call.panel + panel.output_scales, ScaleType::kF32);
    for (int64_t r = row; r < row + rows; ++r) {
      float row_scale = 0.0F;
      std::memcpy(&row_scale, call.x + r * call.x_stride + call.x_sums, 4);
      const __m512 scale = _mm512_set1_ps(row_scale * unit);
      for (int half = 0; half < 2; ++half) {
        float* c = call.c + r * 32 + half * 16;
        _mm512_store_ps(c, _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(c), scale), last.half[half]));
      }
    }
  }
};

}  // namespace
}  // namespace gantry::avx512
