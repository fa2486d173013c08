// Coded panels by vdpbf16ps, rows of bf16; and their decoding to plain bf16 panels.

#include "kernels/grouped_gemm/coded_gemm_avx512.h"
#include "kernels/grouped_gemm/dequantize_avx512.h"
#include "kernels/grouped_gemm/dot_multiply_avx512.h"

namespace gantry::avx512 {
namespace {

struct StoreBF16 {
  static constexpr int64_t kPairBytes = 128;  // two k of 32 lanes
  static void store(std::byte* out, int half, __m512 even, __m512 odd) {
    static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    _mm512_store_si512(out + half * 64,
                       _mm512_permutexvar_epi16(_mm512_loadu_si512(kInterleave), rounded));
  }
};

}  // namespace

void panel_gemm_int8_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, Int8Codes>(call);
}
void panel_gemm_int4_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, Int4Codes>(call);
}
void panel_gemm_e2m1_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, E2M1Codes>(call);
}

void panel_gemm_int4_few_rows(const PanelGemm& call) noexcept {
  few_rows_gemm<DotMultiply, Int4Codes>(call);
}
void panel_gemm_e5m2_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, E5M2Codes>(call);
}
void panel_gemm_uint4_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, UInt4Codes>(call);
}
void panel_gemm_nf4_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, RoundedNF4Codes>(call);
}
void panel_gemm_fp4_dot(const PanelGemm& call) noexcept {
  coded_gemm<DotMultiply, RoundedFP4Codes>(call);
}
void panel_gemm_iq4_dot(const PanelGemm& call) noexcept { coded_gemm<DotMultiply, IQ4Codes>(call); }

void dequantize_bf16(const DequantizePanel& call) noexcept { dequantize<StoreBF16>(call); }

}  // namespace gantry::avx512
