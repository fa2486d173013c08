// Coded panels by FMA, rows of f32; and their decoding to plain f32 panels.

#include "kernels/grouped_gemm/coded_gemm_avx512.h"

#include "kernels/grouped_gemm/dequantize_avx512.h"

namespace gantry::avx512 {
namespace {

struct StoreF32 {
  static constexpr int64_t kPairBytes = 256;  // two k of 32 lanes
  static void store(std::byte* out, int half, __m512 even, __m512 odd) {
    _mm512_store_ps(out + half * 64, even);
    _mm512_store_ps(out + 128 + half * 64, odd);
  }
};

}  // namespace

void panel_gemm_e4m3(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, E4M3Codes>(call); }
void panel_gemm_int8(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, Int8Codes>(call); }
void panel_gemm_int4(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, Int4Codes>(call); }
void panel_gemm_e2m1(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, E2M1Codes>(call); }
void panel_gemm_e5m2(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, E5M2Codes>(call); }
void panel_gemm_uint4(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, UInt4Codes>(call); }
void panel_gemm_nf4(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, NF4Codes>(call); }
void panel_gemm_fp4(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, FP4Codes>(call); }
void panel_gemm_iq4(const PanelGemm& call) noexcept { coded_gemm<FmaMultiply, IQ4Codes>(call); }

void dequantize_f32(const DequantizePanel& call) noexcept { dequantize<StoreF32>(call); }

}  // namespace gantry::avx512
