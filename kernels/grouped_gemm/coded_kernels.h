#pragma once

#include <array>
#include <span>
#include <string_view>

#include "kernels/base/export.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"

namespace gantry GANTRY_API {

/// A GEMM kernel that decodes a coded panel in registers.
struct CodedGemmKernel {
  std::string_view name;
  Isa isa;
  WeightElement element;
  ActivationDType rows;  ///< as in PanelGemmKernel; kInt8: codes with an Int8RowTail
  /// With groups of less than `kWideGroup` inputs (rows of int8: of any size) and more rows than
  /// this something else is faster: another row of the list, or to decode pieces of a panel first
  /// and run a plain kernel on them. Next to bf16 tiles, `kRowsBeforeTiles` is the most.
  int64_t max_rows;
  void (*run)(const PanelGemm& call) noexcept;
};

/// Kernels for at most so many rows are never used for more.
inline constexpr int64_t kFewRows = 2;

/// Where there are bf16 tiles, more rows than this are theirs. For 16 x 32 weights a dot kernel
/// takes 32 cycles a row (Granite Rapids); to decode them first takes about 140 (4 lines of
/// nibbles), and tiles then 17 for up to 16 rows. Figures of single loops: not measured as a whole.
inline constexpr int64_t kRowsBeforeTiles = 5;

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
  ActivationDType rows = ActivationDType::kF32;  ///< how rows of x stand in memory
  const PanelDequantizer* dequantize = nullptr;  ///< null for plain matrices
  /// A way to multiply up to so many rows of an expert with a coded matrix in registers.
  struct Coded {
    const CodedGemmKernel* kernel = nullptr;
    int64_t max_rows = 0;
  };
  /// Ascending max_rows. In the batch-invariant mode one without bound, or none: different ways
  /// round differently.
  std::array<Coded, 2> coded{};

  /// The kernel for so many rows, or null: decode first.
  [[nodiscard]] const CodedGemmKernel* coded_for(int64_t num_rows) const noexcept {
    for (const Coded& way : coded) {
      if (num_rows <= way.max_rows) return way.kernel;
    }
    return nullptr;
  }
};

/// The kernels for a matrix. A coded one is decoded to bf16 where a kernel multiplies that fastest
/// (and activations are bf16), else to f32.
/// @throws Error kUnsupported if there are none
MatrixKernels select_matrix_kernels(const KernelRequest& request, const WeightFormat& format);

/// Kernel names as users see them: "int4_avx512_dot_12x32, many rows: bf16_avx512_dot_12x32".
std::string to_string(const MatrixKernels& kernels);

}  // namespace gantry
