#include "kernels/grouped_gemm/grouped_gemm_kernels.h"

#include "kernels/base/check.h"

namespace gantry {
namespace {

// Best first. A new kernel is one new file and one new row.
constexpr GroupedGemmKernel kKernels[] = {
    {"bf16_avx512_4x4", Isa::kAvx512, PackedLayout::kRowMajor, DType::kBF16, 4,
     avx512::grouped_gemm_bf16},
    {"bf16_avx2_2x4", Isa::kAvx2, PackedLayout::kRowMajor, DType::kBF16, 2,
     avx2::grouped_gemm_bf16},
    {"bf16_scalar", Isa::kScalar, PackedLayout::kRowMajor, DType::kBF16, 1,
     scalar::grouped_gemm_bf16},
    {"f16_avx512_4x4", Isa::kAvx512, PackedLayout::kRowMajor, DType::kF16, 4,
     avx512::grouped_gemm_f16},
    {"f16_avx2_2x4", Isa::kAvx2, PackedLayout::kRowMajor, DType::kF16, 2, avx2::grouped_gemm_f16},
    {"f16_scalar", Isa::kScalar, PackedLayout::kRowMajor, DType::kF16, 1, scalar::grouped_gemm_f16},
    {"f32_avx512_4x4", Isa::kAvx512, PackedLayout::kRowMajor, DType::kF32, 4,
     avx512::grouped_gemm_f32},
    {"f32_avx2_2x4", Isa::kAvx2, PackedLayout::kRowMajor, DType::kF32, 2, avx2::grouped_gemm_f32},
    {"f32_scalar", Isa::kScalar, PackedLayout::kRowMajor, DType::kF32, 1, scalar::grouped_gemm_f32},
};

}  // namespace

std::span<const GroupedGemmKernel> grouped_gemm_kernels() noexcept { return kKernels; }

const GroupedGemmKernel& select_grouped_gemm(PackedLayout layout, DType dtype, IsaSet isas) {
  for (const GroupedGemmKernel& kernel : kKernels) {
    if (kernel.layout == layout && kernel.dtype == dtype && isas.contains(kernel.isa)) {
      return kernel;
    }
  }
  fail(ErrorCode::kUnsupported, "no grouped GEMM kernel reads {} weights on {}", to_string(dtype),
       to_string(isas));
}

}  // namespace gantry
