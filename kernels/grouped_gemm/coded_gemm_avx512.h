#pragma once

// The GEMM of a few rows with a coded panel, over a multiply instruction and a code type. Codes are
// decoded in registers once for up to 12 rows. The sum of a group is taken unscaled and then
// multiplied by the group's scales, in f32; so a row's bits do not depend on the other rows.
// For files compiled for AVX-512, as coded_panel_avx512.h.

#include "kernels/grouped_gemm/coded_blocks_avx512.h"
#include "kernels/grouped_gemm/coded_panel_avx512.h"
#include "kernels/grouped_gemm/fetch_codes_avx512.h"

namespace gantry::avx512 {
namespace {

// Without scales of groups, sums are taken this deep.
constexpr int64_t kUngrouped = 256;

// Adds to the sums of kRows rows what a pair of k gives. x points at the pair in the first row.
struct FmaMultiply {
  static constexpr int64_t kBytes = 4;  // of one k in a row of x
  template <int kRows, typename Pair>
  static void add(__m512 (&sums)[kRows][2], const std::byte* const (&start)[(kRows + 2) / 3],
                  int64_t offset, int64_t stride, const Pair& w0, const Pair& w1) {
    const __m512 even[2] = {even_of(w0), even_of(w1)};
    const __m512 odd[2] = {odd_of(w0), odd_of(w1)};
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const auto* x = reinterpret_cast<const float*>(start[r / 3] + (r % 3) * stride + offset);
      const __m512 x0 = _mm512_set1_ps(x[0]);
      sums[r][0] = _mm512_fmadd_ps(x0, even[0], sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(x0, even[1], sums[r][1]);
      const __m512 x1 = _mm512_set1_ps(x[1]);
      sums[r][0] = _mm512_fmadd_ps(x1, odd[0], sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(x1, odd[1], sums[r][1]);
    }
  }
};

template <typename Multiply, typename Codes, int kPair, int kRows>
void add_pair(__m512 (&sums)[kRows][2], const std::byte* const (&start)[(kRows + 2) / 3],
              int64_t stride, const Codes& codes, const typename Codes::Line& gate,
              const typename Codes::Line& up) {
  Multiply::template add<kRows>(sums, start, kPair * 2 * Multiply::kBytes, stride,
                                codes.template pair<kPair>(gate), codes.template pair<kPair>(up));
}

// kChains: sums of a group that are taken apart, so that an instruction need not wait for the one
// before; they are added where the group ends.
// kLevels: minimums and scales of two levels, as ggml has them. Apart, because GCC 12 keeps sums in
// memory where there is a branch for them (Zen 4, one row of mxfp4: 12 GB/s of weights, 30
// without).
template <typename Multiply, typename Codes, int kRows, bool kLevels, int kChains = 1>
void coded_block(const PanelGemm& call, int64_t row) {
  constexpr bool kTotals = kRows <= kRowsWithTotals;
  constexpr int kStarts = (kRows + 2) / 3;
  const Codes codes;
  const CodedPanel& panel = *call.coded;
  const int64_t group = panel.format.scale != ScaleType::kNone ? panel.format.group : kUngrouped;
  const std::byte* line = call.panel + panel.codes;
  const std::byte* scale_at = call.panel + panel.scales;
  const std::byte* zero_at = panel.format.zero_points ? call.panel + panel.zeros : nullptr;
  const bool minimums = kLevels && panel.format.minimums;
  const bool supers = kLevels && panel.format.super_group > 0;
  int64_t g = 0;
  const int64_t stride = call.x_stride;
  const std::byte* start[kStarts];
  for (int i = 0; i < kStarts; ++i)
    start[i] = call.x + (row + 3 * i) * stride;
  FetchAhead fetch(call.panel + panel.bytes, call.next);
  const std::byte* x_sums = call.x + row * stride + call.x_sums;
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
    __m512 chains[kChains][kRows][2];
    auto& sums = chains[0];
#pragma GCC unroll 4
    for (auto& chain : chains) {
#pragma GCC unroll 12
      for (auto& sum : chain)
        sum[0] = sum[1] = _mm512_setzero_ps();
    }
#pragma GCC unroll 1
    for (const std::byte* end = line + depth / (2 * Codes::kPairs) * 128; line != end;
         line += 128) {
      fetch.step(line);
      const auto gate = codes.load(line);
      const auto up = codes.load(line + 64);
      add_pair<Multiply, Codes, 0>(chains[0], start, stride, codes, gate, up);
      add_pair<Multiply, Codes, 1>(chains[1 % kChains], start, stride, codes, gate, up);
      if constexpr (Codes::kPairs == 4) {
        add_pair<Multiply, Codes, 2>(chains[2 % kChains], start, stride, codes, gate, up);
        add_pair<Multiply, Codes, 3>(chains[3 % kChains], start, stride, codes, gate, up);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kStarts; ++i)
        start[i] += Codes::kPairs * 2 * Multiply::kBytes;
    }
#pragma GCC unroll 4
    for (int i = 1; i < kChains; ++i) {
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        sums[r][0] = _mm512_add_ps(sums[r][0], chains[i][r][0]);
        sums[r][1] = _mm512_add_ps(sums[r][1], chains[i][r][1]);
      }
    }
    Scales scales = load_scales(scale_at, panel.format.scale);
    scale_at += panel.scale_bytes;
    if (supers) multiply_supers(scales, panel, call.panel + panel.super_scales, g);
    if (zero_at != nullptr) {  // sum of x * (q - z) = sum of x * q - z * sum of x
      const Scales zeros = load_zeros(zero_at);
      zero_at += 32;
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        float of_x;
        std::memcpy(&of_x, x_sums + r * stride, 4);
        const __m512 x = _mm512_set1_ps(of_x);
        sums[r][0] = _mm512_fnmadd_ps(x, zeros.half[0], sums[r][0]);
        sums[r][1] = _mm512_fnmadd_ps(x, zeros.half[1], sums[r][1]);
      }
    }
    if (minimums) {  // sum of x * (q * s - m) = s * sum of x * q - m * sum of x
      const Scales least = load_minimums(call.panel, panel, g);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        float of_x;
        std::memcpy(&of_x, x_sums + r * stride, 4);
        const __m512 x = _mm512_set1_ps(of_x);
        if constexpr (kTotals) {
          totals[r][0] = _mm512_fnmadd_ps(x, least.half[0], totals[r][0]);
          totals[r][1] = _mm512_fnmadd_ps(x, least.half[1], totals[r][1]);
        } else {
          float* total = c + r * 32;
          _mm512_store_ps(total, _mm512_fnmadd_ps(x, least.half[0], _mm512_load_ps(total)));
          _mm512_store_ps(total + 16,
                          _mm512_fnmadd_ps(x, least.half[1], _mm512_load_ps(total + 16)));
        }
      }
    }
    x_sums += 4;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kTotals) {
        totals[r][0] = _mm512_fmadd_ps(sums[r][0], scales.half[0], totals[r][0]);
        totals[r][1] = _mm512_fmadd_ps(sums[r][1], scales.half[1], totals[r][1]);
      } else {
        float* total = c + r * 32;
        _mm512_store_ps(total, _mm512_fmadd_ps(sums[r][0], scales.half[0], _mm512_load_ps(total)));
        _mm512_store_ps(total + 16,
                        _mm512_fmadd_ps(sums[r][1], scales.half[1], _mm512_load_ps(total + 16)));
      }
    }
  }
  const Scales last = output_scales(call.panel, panel);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      float* total = c + r * 32 + h * 16;
      const __m512 sum = kTotals ? totals[kTotals ? r : 0][h] : _mm512_load_ps(total);
      _mm512_store_ps(total, _mm512_mul_ps(sum, last.half[h]));
    }
  }
}

bool has_levels(const PanelGemm& call) {
  return call.coded->format.minimums || call.coded->format.super_group > 0;
}

// For one or two rows, whose few sums would wait for themselves. Rows' bits differ from those of
// coded_gemm.
template <typename Multiply, typename Codes, bool kLevels>
void few_rows_blocks(const PanelGemm& call) {
  int64_t row = 0;
  for (; row + 2 <= call.num_rows; row += 2)
    coded_block<Multiply, Codes, 2, kLevels, Codes::kPairs>(call, row);
  if (row < call.num_rows) coded_block<Multiply, Codes, 1, kLevels, Codes::kPairs>(call, row);
}

template <typename Multiply, typename Codes>
void few_rows_gemm(const PanelGemm& call) {
  has_levels(call) ? few_rows_blocks<Multiply, Codes, true>(call)
                   : few_rows_blocks<Multiply, Codes, false>(call);
}

template <typename Multiply, typename Codes, bool kLevels>
constexpr RowBlock kBlocks[kMaxRowBlock] = {
    coded_block<Multiply, Codes, 1, kLevels>,  coded_block<Multiply, Codes, 2, kLevels>,
    coded_block<Multiply, Codes, 3, kLevels>,  coded_block<Multiply, Codes, 4, kLevels>,
    coded_block<Multiply, Codes, 5, kLevels>,  coded_block<Multiply, Codes, 6, kLevels>,
    coded_block<Multiply, Codes, 7, kLevels>,  coded_block<Multiply, Codes, 8, kLevels>,
    coded_block<Multiply, Codes, 9, kLevels>,  coded_block<Multiply, Codes, 10, kLevels>,
    coded_block<Multiply, Codes, 11, kLevels>, coded_block<Multiply, Codes, 12, kLevels>};

template <typename Multiply, typename Codes>
void coded_gemm(const PanelGemm& call) {
  run_blocks(call,
             has_levels(call) ? kBlocks<Multiply, Codes, true> : kBlocks<Multiply, Codes, false>,
             kWideGroup);
}

}  // namespace
}  // namespace gantry::avx512
