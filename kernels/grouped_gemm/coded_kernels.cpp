#include "kernels/grouped_gemm/coded_kernels.h"

#include <limits>

#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr auto kF32Rows = ActivationDType::kF32;
constexpr auto kBF16Rows = ActivationDType::kBF16;

// Best first. max_rows: see bench/panel_gemm_bench.
constexpr CodedGemmKernel kCoded[] = {
    {"e4m3_avx512_dot_12x32", Isa::kAvx512Vbmi, WeightElement::kE4M3, kBF16Rows, 24,
     avx512::panel_gemm_e4m3_dot},
    {"int8_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kInt8, kBF16Rows, 24,
     avx512::panel_gemm_int8_dot},
    {"int4_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kInt4, kBF16Rows, 24,
     avx512::panel_gemm_int4_dot},
    {"e2m1_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kE2M1, kBF16Rows, 24,
     avx512::panel_gemm_e2m1_dot},
    {"e4m3_avx512_fma_12x32", Isa::kAvx512, WeightElement::kE4M3, kF32Rows, 24,
     avx512::panel_gemm_e4m3},
    {"int8_avx512_fma_12x32", Isa::kAvx512, WeightElement::kInt8, kF32Rows, 24,
     avx512::panel_gemm_int8},
    {"int4_avx512_fma_12x32", Isa::kAvx512, WeightElement::kInt4, kF32Rows, 24,
     avx512::panel_gemm_int4},
    {"e2m1_avx512_fma_12x32", Isa::kAvx512, WeightElement::kE2M1, kF32Rows, 24,
     avx512::panel_gemm_e2m1},
};

constexpr PanelDequantizer kDequantizers[] = {
    {"dequantize_bf16_avx512", Isa::kAvx512Bf16, DType::kBF16, avx512::dequantize_bf16},
    {"dequantize_f32_avx512", Isa::kAvx512, DType::kF32, avx512::dequantize_f32},
    {"dequantize_bf16_scalar", Isa::kScalar, DType::kBF16, scalar::dequantize_bf16},
    {"dequantize_f32_scalar", Isa::kScalar, DType::kF32, scalar::dequantize_f32},
};

}  // namespace

std::span<const CodedGemmKernel> coded_gemm_kernels() noexcept { return kCoded; }
std::span<const PanelDequantizer> panel_dequantizers() noexcept { return kDequantizers; }

MatrixKernels select_matrix_kernels(const KernelRequest& request, const WeightFormat& format) {
  MatrixKernels kernels;
  if (!format.coded()) {
    kernels.gemm = &select_panel_gemm(request);
    return kernels;
  }
  KernelRequest plain = request;
  plain.weights = DType::kBF16;
  kernels.gemm = &select_panel_gemm(plain);
  if (kernels.gemm->rows != kBF16Rows) {  // f32 rows: nothing is won by rounding weights
    plain.weights = DType::kF32;
    kernels.gemm = &select_panel_gemm(plain);
  }
  for (const PanelDequantizer& dequantizer : kDequantizers) {
    if (dequantizer.out != plain.weights || !request.isas.contains(dequantizer.isa)) continue;
    kernels.dequantize = &dequantizer;
    break;
  }
  GANTRY_CHECK(kernels.dequantize != nullptr, ErrorCode::kUnsupported,
               "nothing decodes to {} on {}", to_string(plain.weights), to_string(request.isas));
  for (const CodedGemmKernel& coded : kCoded) {
    if (coded.element != format.element || coded.rows != kernels.gemm->rows ||
        !request.isas.contains(coded.isa)) {
      continue;
    }
    kernels.coded = &coded;
    kernels.coded_rows =
        request.batch_invariant ? std::numeric_limits<int64_t>::max() : coded.max_rows;
    break;
  }
  return kernels;
}

std::string to_string(const MatrixKernels& kernels) {
  if (kernels.dequantize == nullptr) return std::string(kernels.gemm->name);
  const std::string many = fmt::format("{} + {}", kernels.dequantize->name, kernels.gemm->name);
  if (kernels.coded == nullptr) return many;
  return fmt::format("{} (more than {} rows: {})", kernels.coded->name, kernels.coded_rows, many);
}

}  // namespace gantry
