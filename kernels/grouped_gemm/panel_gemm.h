#pragma once

// Plain data only: files that are compiled for one instruction set include headers like this one
// and nothing else of ours, so that no shared inline code is compiled with their flags.

#include <cstddef>
#include <cstdint>

#include "kernels/quant/weight_format.h"

namespace gantry {

/// Most rows of one call: C is then 6 KB and stays in the L1 cache for what follows; also three
/// blocks of 16 AMX rows and four of 12 AVX-512 rows.
inline constexpr int64_t kMaxPanelRows = 48;

/// Groups of at least so many inputs are wide: their sums cost little beside their multiplications.
inline constexpr int64_t kWideGroup = 128;

/// One call of a kernel: C[r, l] = sum over k of x[r, k] * panel[k, l] for 32 lanes, in f32.
/// A row's sum is taken in an order that depends on nothing but k.
struct PanelGemm {
  const std::byte* x;       ///< num_rows rows of k values, f32 or bf16 as the kernel wants; 64-byte
                            ///< aligned; zero beyond the matrix' own k
  int64_t x_stride;         ///< bytes from row to row, a multiple of 64
  const std::byte* panel;   ///< see PackedLayout; 64-byte aligned
  int64_t k;                ///< padded: a multiple of 32
  int64_t num_rows;         ///< 1 .. kMaxPanelRows
  float* c;                 ///< [num_rows, 32], written; 64-byte aligned
  const std::byte* next;    ///< as many bytes as the panel has, fetched towards the cache; or null
  bool accumulate = false;  ///< C's old values are where the sums begin; only for plain panels
  /// Sections of a coded panel, else null. With zero points or minimums every row of x is followed
  /// by its sums over the groups, [groups] f32, at `x_sums` bytes from the row's start.
  const CodedPanel* coded = nullptr;
  int64_t x_sums = 0;
};

/// What stands `x_sums` bytes behind the start of an int8 row: x = codes * scale. With grouped
/// weights the sums of the codes over each group follow, [groups] i32. Of rows for codes of 4 bits,
/// every 8 codes are in the order in which those come: k 0, 4, 1, 5, 2, 6, 3, 7.
struct Int8RowTail {
  float scale;
  int32_t sum;  ///< of the codes
};

/// Decodes a piece of a coded panel: k_begin .. k_begin + k_count - 1 of all 32 lanes, to a plain
/// panel of f32 or bf16 (rounded). Output scales are left out: they are factors of the sums.
struct DequantizePanel {
  const std::byte* panel;
  const CodedPanel* coded;
  int64_t k_begin;  ///< a multiple of 32
  int64_t k_count;  ///< a multiple of 32
  std::byte* out;   ///< [k_count, 32] as PackedLayout has it for f32 or bf16; 64-byte aligned
  const std::byte* next = nullptr;  ///< as in PanelGemm
};

namespace scalar {
void panel_gemm_bf16(const PanelGemm& call) noexcept;
void panel_gemm_f16(const PanelGemm& call) noexcept;
void panel_gemm_f32(const PanelGemm& call) noexcept;
void panel_gemm_bf16_amx_emulated(const PanelGemm& call) noexcept;
void panel_gemm_int8_amx_emulated(const PanelGemm& call) noexcept;
void dequantize_f32(const DequantizePanel& call) noexcept;
void dequantize_bf16(const DequantizePanel& call) noexcept;
}  // namespace scalar
namespace avx2 {
void panel_gemm_bf16(const PanelGemm& call) noexcept;
void panel_gemm_f16(const PanelGemm& call) noexcept;
void panel_gemm_f32(const PanelGemm& call) noexcept;
void dequantize_f32(const DequantizePanel& call) noexcept;
}  // namespace avx2
namespace avx512 {
void panel_gemm_bf16(const PanelGemm& call) noexcept;
void panel_gemm_f16(const PanelGemm& call) noexcept;
void panel_gemm_f32(const PanelGemm& call) noexcept;
void panel_gemm_bf16_dot(const PanelGemm& call) noexcept;
void panel_gemm_e4m3(const PanelGemm& call) noexcept;
void panel_gemm_int8(const PanelGemm& call) noexcept;
void panel_gemm_int4(const PanelGemm& call) noexcept;
void panel_gemm_e2m1(const PanelGemm& call) noexcept;
void panel_gemm_e4m3_dot(const PanelGemm& call) noexcept;
void panel_gemm_int8_dot(const PanelGemm& call) noexcept;
void panel_gemm_int4_dot(const PanelGemm& call) noexcept;
void panel_gemm_e2m1_dot(const PanelGemm& call) noexcept;
void panel_gemm_e4m3_few_rows(const PanelGemm& call) noexcept;
void panel_gemm_int4_few_rows(const PanelGemm& call) noexcept;
void panel_gemm_e5m2(const PanelGemm& call) noexcept;
void panel_gemm_uint4(const PanelGemm& call) noexcept;
void panel_gemm_nf4(const PanelGemm& call) noexcept;
void panel_gemm_fp4(const PanelGemm& call) noexcept;
void panel_gemm_iq4(const PanelGemm& call) noexcept;
void panel_gemm_e5m2_dot(const PanelGemm& call) noexcept;
void panel_gemm_uint4_dot(const PanelGemm& call) noexcept;
void panel_gemm_nf4_dot(const PanelGemm& call) noexcept;
void panel_gemm_fp4_dot(const PanelGemm& call) noexcept;
void panel_gemm_iq4_dot(const PanelGemm& call) noexcept;
void panel_gemm_uint4_vnni(const PanelGemm& call) noexcept;
void panel_gemm_iq4_vnni(const PanelGemm& call) noexcept;
void panel_gemm_int8_vnni(const PanelGemm& call) noexcept;
void panel_gemm_int4_vnni(const PanelGemm& call) noexcept;
void panel_gemm_e2m1_vnni(const PanelGemm& call) noexcept;
void panel_gemm_int8_amx_emulated(const PanelGemm& call) noexcept;
void dequantize_f32(const DequantizePanel& call) noexcept;
void dequantize_bf16(const DequantizePanel& call) noexcept;
}  // namespace avx512
namespace amx {
void panel_gemm_bf16(const PanelGemm& call) noexcept;
void panel_gemm_int8(const PanelGemm& call) noexcept;
}  // namespace amx

}  // namespace gantry
