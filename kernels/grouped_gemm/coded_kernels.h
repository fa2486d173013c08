#pragma once

#include <span>
#include <string_view>

#include "kernels/base/export.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"

namespace gantry GANTRY_API {

/// A GEMM kernel that decodes a coded panel in registers: for a few rows.
struct CodedGemmKernel {
  std::string_view name;
  Isa isa;
  WeightElement element;
  ActivationDType rows;  ///< as in PanelGemmKernel
  /// With more rows than this it is faster to decode pieces of a panel first and then run a plain
  /// kernel over them.
  int64_t max_rows;
  void (*run)(const PanelGemm& call) noexcept;
};

/// Decodes pieces of coded panels, any format.
struct PanelDequantizer {
  std::string_view name;
  Isa isa;
  DType out;  ///< f32 or bf16
  void (*run)(const DequantizePanel& call) noexcept;
};

/// Everything in this binary, best first.
std::span<const CodedGemmKernel> coded_gemm_kernels() noexcept;
std::span<const PanelDequantizer> panel_dequantizers() noexcept;

/// How one matrix is multiplied: a plain kernel, and for coded ones what turns them into something
/// that it reads.
struct MatrixKernels {
  const PanelGemmKernel* gemm = nullptr;
  const PanelDequantizer* dequantize = nullptr;  ///< null for plain matrices
  const CodedGemmKernel* coded = nullptr;        ///< null where there is none
  /// Most rows of an expert that `coded` multiplies. Without bound in the batch-invariant mode:
  /// the two ways round differently.
  int64_t coded_rows = 0;
};

/// The kernels for a matrix. A coded one is decoded to bf16 where a kernel multiplies that fastest
/// (and activations are bf16), else to f32.
/// @throws Error kUnsupported if there are none
MatrixKernels select_matrix_kernels(const KernelRequest& request, const WeightFormat& format);

/// Kernel names as users see them: "int4_avx512_dot_12x32, many rows: bf16_avx512_dot_12x32".
std::string to_string(const MatrixKernels& kernels);

}  // namespace gantry
