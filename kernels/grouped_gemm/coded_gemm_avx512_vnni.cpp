// Coded panels of integers by vpdpbusd, rows of int8: the sum of a group is exact, then it meets
// the group's scale in f32. The instruction multiplies unsigned by signed bytes, so weights go in
// with an offset added, and the offset times the row's sum over the group, which came with the row,
// is taken off again. FP4 counts as an integer: twice its value is one.

#include <immintrin.h>

#include <cstddef>
#include <cstring>

#include "kernels/grouped_gemm/coded_blocks_avx512.h"
#include "kernels/grouped_gemm/fetch_codes_avx512.h"
#include "kernels/grouped_gemm/panel_gemm.h"
#include "kernels/grouped_gemm/panel_scales_avx512.h"
#include "kernels/quant/code_books.h"

namespace gantry::avx512 {
namespace {

// Up to so many rows sum the two halves of a line of nibbles apart: four chains of dependent sums
// instead of two.
constexpr int kRowsWithChains = 2;

// Written as assembly because GCC 12 copies and spills the sums of the intrinsic from 9 rows on,
// which halves the speed.
void add_products(__m512i& sums, __m512i weights, __m512i x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(weights), "v"(x));
}

__m512i broadcast(const std::byte* four_codes) {
  int bits;
  std::memcpy(&bits, four_codes, 4);
  return _mm512_set1_epi32(bits);
}

// What the offset of a `Codes` type (below) adds to the sums of a row, negative.
template <typename Codes>
__m512i offset_of(const std::byte* sum_of_codes) {
  int32_t sum;
  std::memcpy(&sum, sum_of_codes, 4);
  return _mm512_set1_epi32(-Codes::kOffset * sum);
}

// A `Codes` type makes unsigned bytes of one line: 16 lanes x kQuads x 4 k, each (value + kOffset)
// / kUnit. `Line` is what is kept of a line between its quads.

struct Int8Bytes {
  static constexpr int kQuads = 1;
  static constexpr int kOffset = 128;
  static constexpr float kUnit = 1.0F;
  __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));

  static __m512i units(__m512i values) { return values; }
  template <int kQuad>
  [[nodiscard]] __m512i quad(__m512i line) const {
    return _mm512_xor_si512(line, offset);
  }
};

// Nibbles of a line: the low ones of all bytes are k 0, 4, 1, 5, the high ones 2, 6, 3, 7, in which
// order codes of the row stand, too.
template <int kQuad>
__m512i shifted(__m512i line) {
  return kQuad == 0 ? line : _mm512_srli_epi16(line, 4);
}

struct Int4Bytes {
  static constexpr int kQuads = 2;
  static constexpr int kOffset = 8;
  static constexpr float kUnit = 1.0F;
  __m512i sign = _mm512_set1_epi8(0x08);
  __m512i low = _mm512_set1_epi8(0x0f);

  static __m512i units(__m512i values) { return values; }
  template <int kQuad>
  [[nodiscard]] __m512i quad(__m512i line) const {
    constexpr int kXorAnd = 0x28;  // (a ^ b) & c
    return _mm512_ternarylogic_epi32(shifted<kQuad>(line), sign, low, kXorAnd);
  }
};

struct E2M1Bytes {
  static constexpr int kQuads = 2;
  static constexpr int kOffset = 12;
  static constexpr float kUnit = 0.5F;
  __m512i low = _mm512_set1_epi8(0x0f);
  __m512i table = _mm512_broadcast_i32x4(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));

  static __m512i units(__m512i values) { return _mm512_slli_epi32(values, 1); }
  template <int kQuad>
  [[nodiscard]] __m512i quad(__m512i line) const {
    return _mm512_shuffle_epi8(table, _mm512_and_si512(shifted<kQuad>(line), low));
  }
};

struct UInt4Bytes {
  static constexpr int kQuads = 2;
  static constexpr int kOffset = 0;
  static constexpr float kUnit = 1.0F;
  __m512i low = _mm512_set1_epi8(0x0f);

  static __m512i units(__m512i values) { return values; }
  template <int kQuad>
  [[nodiscard]] __m512i quad(__m512i line) const {
    return _mm512_and_si512(shifted<kQuad>(line), low);
  }
};

struct IQ4Bytes {
  static constexpr int kQuads = 2;
  static constexpr int kOffset = 127;
  static constexpr float kUnit = 1.0F;
  __m512i low = _mm512_set1_epi8(0x0f);
  __m512i table = _mm512_add_epi8(
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kIQ4Values))),
      _mm512_set1_epi8(127));

  static __m512i units(__m512i values) { return values; }
  template <int kQuad>
  [[nodiscard]] __m512i quad(__m512i line) const {
    return _mm512_shuffle_epi8(table, _mm512_and_si512(shifted<kQuad>(line), low));
  }
};

// kGeneral: with zero points, minimums or scales of two levels, compiled apart as in
// coded_gemm_avx512.h. Without them the offset is the same for all lanes: sums start below zero by
// what it adds, which costs a fifth of the time of groups of 32.
template <typename Codes, int kRows, bool kGeneral>
void block(const PanelGemm& call, int64_t row) {
  constexpr bool kTotals = kRows <= kRowsWithTotals;
  constexpr int kStarts = (kRows + 2) / 3;
  constexpr int kChains = kRows <= kRowsWithChains ? Codes::kQuads : 1;
  constexpr int64_t kDepth = 4 * Codes::kQuads;
  const Codes codes;
  const CodedPanel& panel = *call.coded;
  const bool grouped = panel.format.scale != ScaleType::kNone;
  const int64_t group = grouped ? panel.format.group : call.k;
  const int64_t stride = call.x_stride;
  const std::byte* start[kStarts];
  for (int i = 0; i < kStarts; ++i)
    start[i] = call.x + (row + 3 * i) * stride;
  const std::byte* line = call.panel + panel.codes;
  const std::byte* scale_at = call.panel + panel.scales;
  const std::byte* zero_at =
      kGeneral && panel.format.zero_points ? call.panel + panel.zeros : nullptr;
  int64_t g = 0;
  const std::byte* tail = call.x + row * stride + call.x_sums;
  // The sum of all codes is that of the only group there is.
  const std::byte* x_sums = tail + (grouped ? sizeof(Int8RowTail) : offsetof(Int8RowTail, sum));
  FetchAhead fetch(call.panel + panel.bytes, call.next);
  float* c = call.c + row * 32;

  __m512 totals[kTotals ? kRows : 1][2];
  if (kTotals) {
#pragma GCC unroll 12
    for (auto& total : totals)
      total[0] = total[1] = _mm512_setzero_ps();
  } else {
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      _mm512_store_ps(c + r * 32, _mm512_setzero_ps());
      _mm512_store_ps(c + r * 32 + 16, _mm512_setzero_ps());
    }
  }
  for (int64_t begin = 0; begin < call.k; begin += group, ++g) {
    const int64_t depth = begin + group < call.k ? group : call.k - begin;
    __m512i sums[kRows][2][kChains];
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < kChains; ++i)
        sums[r][0][i] = sums[r][1][i] = _mm512_setzero_si512();
      if constexpr (!kGeneral) {
        sums[r][0][0] = sums[r][1][0] = offset_of<Codes>(x_sums + r * stride);
      }
    }
#pragma GCC unroll 1
    for (const std::byte* end = line + depth / kDepth * 128; line != end; line += 128) {
      fetch.step(line);
      const __m512i gate = _mm512_load_si512(line);
      const __m512i up = _mm512_load_si512(line + 64);
      const __m512i gate0 = codes.template quad<0>(gate);
      const __m512i up0 = codes.template quad<0>(up);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const __m512i x = broadcast(start[r / 3] + (r % 3) * stride);
        add_products(sums[r][0][0], gate0, x);
        add_products(sums[r][1][0], up0, x);
      }
      if constexpr (Codes::kQuads == 2) {
        const __m512i gate1 = codes.template quad<1>(gate);
        const __m512i up1 = codes.template quad<1>(up);
#pragma GCC unroll 12
        for (int r = 0; r < kRows; ++r) {
          const __m512i x = broadcast(start[r / 3] + (r % 3) * stride + 4);
          add_products(sums[r][0][kChains - 1], gate1, x);
          add_products(sums[r][1][kChains - 1], up1, x);
        }
      }
#pragma GCC unroll 4
      for (int i = 0; i < kStarts; ++i)
        start[i] += kDepth;
    }
    // sum of x * (q - z) = sum of x * (q + offset) - (z + offset) * sum of x
    Scales scales = load_scales(scale_at, panel.format.scale);
    scale_at += panel.scale_bytes;
    Scales least;
    least.half[0] = least.half[1] = _mm512_setzero_ps();
    if (kGeneral && panel.format.super_group > 0) {
      multiply_supers(scales, panel, call.panel + panel.super_scales, g);
    }
    if (kGeneral && panel.format.minimums) least = load_minimums(call.panel, panel, g);
    __m512i shift[2] = {_mm512_set1_epi32(Codes::kOffset), _mm512_set1_epi32(Codes::kOffset)};
    if (zero_at != nullptr) {
      shift[0] = _mm512_add_epi32(shift[0], Codes::units(load_zero_codes(zero_at)));
      shift[1] = _mm512_add_epi32(shift[1], Codes::units(load_zero_codes(zero_at + 16)));
      zero_at += 32;
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = broadcast(x_sums + r * stride);
      __m512i sum0 = sums[r][0][0];
      __m512i sum1 = sums[r][1][0];
      if constexpr (kChains == 2) {
        sum0 = _mm512_add_epi32(sum0, sums[r][0][kChains - 1]);
        sum1 = _mm512_add_epi32(sum1, sums[r][1][kChains - 1]);
      }
      if constexpr (kGeneral) {
        sum0 = _mm512_sub_epi32(sum0, _mm512_mullo_epi32(x, shift[0]));
        sum1 = _mm512_sub_epi32(sum1, _mm512_mullo_epi32(x, shift[1]));
      }
      const __m512 of_group0 = _mm512_cvtepi32_ps(sum0);
      const __m512 of_group1 = _mm512_cvtepi32_ps(sum1);
      if constexpr (kTotals) {
        totals[r][0] = _mm512_fmadd_ps(of_group0, scales.half[0], totals[r][0]);
        totals[r][1] = _mm512_fmadd_ps(of_group1, scales.half[1], totals[r][1]);
      } else {
        float* total = c + r * 32;
        _mm512_store_ps(total, _mm512_fmadd_ps(of_group0, scales.half[0], _mm512_load_ps(total)));
        _mm512_store_ps(total + 16,
                        _mm512_fmadd_ps(of_group1, scales.half[1], _mm512_load_ps(total + 16)));
      }
      if (kGeneral &&
          panel.format.minimums) {  // sum of x * (q * s - m) = s * sum of x * q - m * sum of x
        const __m512 of_x = _mm512_cvtepi32_ps(x);
        if constexpr (kTotals) {
          totals[r][0] = _mm512_fnmadd_ps(of_x, least.half[0], totals[r][0]);
          totals[r][1] = _mm512_fnmadd_ps(of_x, least.half[1], totals[r][1]);
        } else {
          float* total = c + r * 32;
          _mm512_store_ps(total, _mm512_fnmadd_ps(of_x, least.half[0], _mm512_load_ps(total)));
          _mm512_store_ps(total + 16,
                          _mm512_fnmadd_ps(of_x, least.half[1], _mm512_load_ps(total + 16)));
        }
      }
    }
    x_sums += 4;
  }
  const Scales last = output_scales(call.panel, panel);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    float row_scale;
    std::memcpy(&row_scale, tail + r * stride, 4);
    const __m512 scale = _mm512_set1_ps(row_scale * Codes::kUnit);
#pragma GCC unroll 2  // an index that is not constant would keep the sums in memory
    for (int h = 0; h < 2; ++h) {
      float* total = c + r * 32 + h * 16;
      const __m512 sum = kTotals ? totals[kTotals ? r : 0][h] : _mm512_load_ps(total);
      _mm512_store_ps(total, _mm512_mul_ps(_mm512_mul_ps(sum, scale), last.half[h]));
    }
  }
}

template <typename Codes, bool kGeneral>
constexpr RowBlock kBlocks[kMaxRowBlock] = {
    block<Codes, 1, kGeneral>,  block<Codes, 2, kGeneral>,  block<Codes, 3, kGeneral>,
    block<Codes, 4, kGeneral>,  block<Codes, 5, kGeneral>,  block<Codes, 6, kGeneral>,
    block<Codes, 7, kGeneral>,  block<Codes, 8, kGeneral>,  block<Codes, 9, kGeneral>,
    block<Codes, 10, kGeneral>, block<Codes, 11, kGeneral>, block<Codes, 12, kGeneral>};

template <typename Codes>
void run(const PanelGemm& call) {
  const WeightFormat& format = call.coded->format;
  const bool general = format.zero_points || format.minimums || format.super_group > 0;
  // The scaled sum of a group costs more here, next to products that take half the time.
  run_blocks(call, general ? kBlocks<Codes, true> : kBlocks<Codes, false>, kWideGroup + 1);
}

}  // namespace

void panel_gemm_int8_vnni(const PanelGemm& call) noexcept { run<Int8Bytes>(call); }
void panel_gemm_int4_vnni(const PanelGemm& call) noexcept { run<Int4Bytes>(call); }
void panel_gemm_e2m1_vnni(const PanelGemm& call) noexcept { run<E2M1Bytes>(call); }
void panel_gemm_uint4_vnni(const PanelGemm& call) noexcept { run<UInt4Bytes>(call); }
void panel_gemm_iq4_vnni(const PanelGemm& call) noexcept { run<IQ4Bytes>(call); }

}  // namespace gantry::avx512
