#include "kernels/grouped_gemm/coded_kernels.h"

#include <algorithm>
#include <limits>

#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr auto kF32Rows = ActivationDType::kF32;
constexpr auto kBF16Rows = ActivationDType::kBF16;
constexpr auto kInt8Rows = ActivationDType::kInt8;

constexpr int64_t kNoBound = std::numeric_limits<int64_t>::max();

// Best first. max_rows: bench/coded_panel_bench on Zen 4.
constexpr CodedGemmKernel kCoded[] = {
    // Rows of int8. Tiles take int8 panels as they are, nibbles only for more rows than make up for
    // decoding them to memory.
    {"int8_amx_32x32", Isa::kAmxInt8, WeightElement::kInt8, kInt8Rows, kNoBound,
     amx::panel_gemm_int8},
    {"int8_amx_32x32_emulated", Isa::kAmxEmulated, WeightElement::kInt8, kInt8Rows, kNoBound,
     scalar::panel_gemm_int8_amx_emulated},
    {"int8_avx512_vnni_12x32", Isa::kAvx512Vnni, WeightElement::kInt8, kInt8Rows, kNoBound,
     avx512::panel_gemm_int8_vnni},
    {"int4_avx512_vnni_12x32", Isa::kAvx512Vnni, WeightElement::kInt4, kInt8Rows, 8,
     avx512::panel_gemm_int4_vnni},
    {"int4_amx_32x32", Isa::kAmxInt8, WeightElement::kInt4, kInt8Rows, kNoBound,
     amx::panel_gemm_int8},
    {"int4_amx_32x32_emulated", Isa::kAmxEmulated, WeightElement::kInt4, kInt8Rows, kNoBound,
     scalar::panel_gemm_int8_amx_emulated},
    {"e2m1_avx512_vnni_12x32", Isa::kAvx512Vnni, WeightElement::kE2M1, kInt8Rows, 8,
     avx512::panel_gemm_e2m1_vnni},
    {"e2m1_amx_32x32", Isa::kAmxInt8, WeightElement::kE2M1, kInt8Rows, kNoBound,
     amx::panel_gemm_int8},
    {"e2m1_amx_32x32_emulated", Isa::kAmxEmulated, WeightElement::kE2M1, kInt8Rows, kNoBound,
     scalar::panel_gemm_int8_amx_emulated},
    {"uint4_avx512_vnni_12x32", Isa::kAvx512Vnni, WeightElement::kUInt4, kInt8Rows, 8,
     avx512::panel_gemm_uint4_vnni},
    {"uint4_amx_32x32", Isa::kAmxInt8, WeightElement::kUInt4, kInt8Rows, kNoBound,
     amx::panel_gemm_int8},
    {"uint4_amx_32x32_emulated", Isa::kAmxEmulated, WeightElement::kUInt4, kInt8Rows, kNoBound,
     scalar::panel_gemm_int8_amx_emulated},
    {"iq4_avx512_vnni_12x32", Isa::kAvx512Vnni, WeightElement::kIQ4, kInt8Rows, 8,
     avx512::panel_gemm_iq4_vnni},
    {"iq4_amx_32x32", Isa::kAmxInt8, WeightElement::kIQ4, kInt8Rows, kNoBound,
     amx::panel_gemm_int8},
    {"iq4_amx_32x32_emulated", Isa::kAmxEmulated, WeightElement::kIQ4, kInt8Rows, kNoBound,
     scalar::panel_gemm_int8_amx_emulated},
    {"e4m3_avx512_dot_2x32", Isa::kAvx512Vbmi, WeightElement::kE4M3, kBF16Rows, 1,
     avx512::panel_gemm_e4m3_few_rows},
    {"e4m3_avx512_dot_12x32", Isa::kAvx512Vbmi, WeightElement::kE4M3, kBF16Rows, kNoBound,
     avx512::panel_gemm_e4m3_dot},
    {"int8_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kInt8, kBF16Rows, 24,
     avx512::panel_gemm_int8_dot},
    {"int4_avx512_dot_2x32", Isa::kAvx512Bf16, WeightElement::kInt4, kBF16Rows, kFewRows,
     avx512::panel_gemm_int4_few_rows},
    {"int4_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kInt4, kBF16Rows, kNoBound,
     avx512::panel_gemm_int4_dot},
    {"e2m1_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kE2M1, kBF16Rows, 96,
     avx512::panel_gemm_e2m1_dot},
    {"e5m2_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kE5M2, kBF16Rows, kNoBound,
     avx512::panel_gemm_e5m2_dot},
    {"uint4_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kUInt4, kBF16Rows, 96,
     avx512::panel_gemm_uint4_dot},
    {"nf4_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kNF4, kBF16Rows, kNoBound,
     avx512::panel_gemm_nf4_dot},
    {"fp4_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kFP4, kBF16Rows, kNoBound,
     avx512::panel_gemm_fp4_dot},
    {"iq4_avx512_dot_12x32", Isa::kAvx512Bf16, WeightElement::kIQ4, kBF16Rows, kNoBound,
     avx512::panel_gemm_iq4_dot},
    {"e4m3_avx512_fma_12x32", Isa::kAvx512, WeightElement::kE4M3, kF32Rows, 12,
     avx512::panel_gemm_e4m3},
    {"int8_avx512_fma_12x32", Isa::kAvx512, WeightElement::kInt8, kF32Rows, 24,
     avx512::panel_gemm_int8},
    {"int4_avx512_fma_12x32", Isa::kAvx512, WeightElement::kInt4, kF32Rows, 24,
     avx512::panel_gemm_int4},
    {"e2m1_avx512_fma_12x32", Isa::kAvx512, WeightElement::kE2M1, kF32Rows, 24,
     avx512::panel_gemm_e2m1},
    {"e5m2_avx512_fma_12x32", Isa::kAvx512, WeightElement::kE5M2, kF32Rows, 12,
     avx512::panel_gemm_e5m2},
    {"uint4_avx512_fma_12x32", Isa::kAvx512, WeightElement::kUInt4, kF32Rows, 24,
     avx512::panel_gemm_uint4},
    {"nf4_avx512_fma_12x32", Isa::kAvx512, WeightElement::kNF4, kF32Rows, 24,
     avx512::panel_gemm_nf4},
    {"fp4_avx512_fma_12x32", Isa::kAvx512, WeightElement::kFP4, kF32Rows, 24,
     avx512::panel_gemm_fp4},
    {"iq4_avx512_fma_12x32", Isa::kAvx512, WeightElement::kIQ4, kF32Rows, 24,
     avx512::panel_gemm_iq4},
};

constexpr PanelDequantizer kDequantizers[] = {
    {"dequantize_bf16_avx512", Isa::kAvx512Bf16, DType::kBF16, avx512::dequantize_bf16},
    {"dequantize_f32_avx512", Isa::kAvx512, DType::kF32, avx512::dequantize_f32},
    {"dequantize_f32_avx2", Isa::kAvx2, DType::kF32, avx2::dequantize_f32},
    {"dequantize_bf16_scalar", Isa::kScalar, DType::kBF16, scalar::dequantize_bf16},
    {"dequantize_f32_scalar", Isa::kScalar, DType::kF32, scalar::dequantize_f32},
};

bool reads(const CodedGemmKernel& kernel, const WeightFormat& format) {
  if (kernel.element != format.element) return false;
  // Halves are counted as integers there, minimums are not.
  const bool halves = format.element == WeightElement::kE2M1 && kernel.rows == kInt8Rows;
  return !halves || !format.minimums;
}

void select_coded(const KernelRequest& request, const WeightFormat& format,
                  MatrixKernels& kernels) {
  size_t count = 0;
  int64_t covered = 0;
  const bool int8 = kernels.rows == kInt8Rows;
  const bool tiles =
      !int8 && (kernels.gemm->isa == Isa::kAmxBf16 || kernels.gemm->isa == Isa::kAmxEmulated);
  if (tiles && request.batch_invariant) return;  // one way for all: that of many rows
  for (const CodedGemmKernel& coded : kCoded) {
    if (!reads(coded, format) || coded.rows != kernels.rows || !request.isas.contains(coded.isa)) {
      continue;
    }
    const bool wide = !format.grouped() || format.group >= kWideGroup;
    int64_t rows = wide && !int8 && coded.max_rows > kFewRows ? kNoBound : coded.max_rows;
    if (tiles) rows = std::min(rows, kRowsBeforeTiles);
    if (rows <= covered) continue;
    if (request.batch_invariant) {  // the one way that serves the most rows
      kernels.coded[0] = {&coded, kNoBound};
    } else if (count < kernels.coded.size()) {
      kernels.coded[count++] = {&coded, rows};
    }
    covered = rows;
  }
  // Nothing else multiplies rows of int8.
  if (int8 && count > 0) kernels.coded[count - 1].max_rows = kNoBound;
}

}  // namespace

std::span<const CodedGemmKernel> coded_gemm_kernels() noexcept { return kCoded; }
std::span<const PanelDequantizer> panel_dequantizers() noexcept { return kDequantizers; }

MatrixKernels select_matrix_kernels(const KernelRequest& request, const WeightFormat& format) {
  MatrixKernels kernels;
  if (!format.coded()) {
    kernels.gemm = &select_panel_gemm(request);
    kernels.rows = kernels.gemm->rows;
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
  kernels.rows = kernels.gemm->rows;
  if (request.int8_rows) {
    kernels.rows = kInt8Rows;
    select_coded(request, format, kernels);
    if (kernels.coded[0].kernel != nullptr) return kernels;
    kernels.rows = kernels.gemm->rows;
  }
  select_coded(request, format, kernels);
  return kernels;
}

std::string to_string(const MatrixKernels& kernels) {
  if (kernels.dequantize == nullptr) return std::string(kernels.gemm->name);
  const std::string many = fmt::format("{} + {}", kernels.dequantize->name, kernels.gemm->name);
  std::string text;
  for (const MatrixKernels::Coded& way : kernels.coded) {
    if (way.kernel == nullptr) break;
    if (!text.empty()) text += ", ";
    text += way.kernel->name;
    if (way.max_rows == kNoBound) return text;
    text += fmt::format(" to {} rows", way.max_rows);
  }
  if (!text.empty()) text += ", ";
  return text + many;
}

}  // namespace gantry
