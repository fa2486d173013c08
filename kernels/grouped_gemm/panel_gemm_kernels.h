#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/cpu_features.h"
#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry GANTRY_API {

/// Number format of what enters the GEMMs. Sums are f32 always.
enum class ActivationDType : uint8_t {
  kF32,   ///< nothing is rounded
  kBF16,  ///< the inputs of w13 and of w2 are rounded to bf16
  /// What the checkpoint declares (FusedExpertsCall's quantizers), simulated on f32 rows: nothing
  /// else is rounded.
  kScheme,
  /// Rounded to int8 with one scale a token, whatever the checkpoint declares. An error of about
  /// 1e-2.
  kInt8,
};

std::string_view to_string(ActivationDType dtype) noexcept;

/// A panel GEMM kernel: what it needs and what it reads.
struct PanelGemmKernel {
  std::string_view name;  ///< weight type, ISA, instruction and tile, e.g. "bf16_avx512_dot_12x32"
  Isa isa;
  DType weights;
  /// How rows of x stand in memory. A kernel of f32 rows also serves bf16 activations: they are
  /// rounded, then stored as f32. One of bf16 rows cannot serve f32 activations.
  ActivationDType rows;
  /// A row's bits do not depend on how many rows a call has.
  bool batch_invariant;
  void (*run)(const PanelGemm& call) noexcept;

  /// Bytes from row to row for `k` columns: padded_stride of them.
  [[nodiscard]] int64_t row_stride_bytes(int64_t k) const noexcept;
};

/// The distance of rows that hold so many bytes: whole lines of 64 bytes, and never a multiple of
/// 4 KB, where all rows of a block would fall into one set of the L1 cache.
int64_t padded_stride(int64_t bytes) noexcept;

/// Every kernel in this binary, best first. Selection, `gantry info`, tests and benches walk it.
std::span<const PanelGemmKernel> panel_gemm_kernels() noexcept;

/// Which AVX-512 instruction multiplies bf16 fastest here: vdpbf16ps, or FMA on widened values.
enum class Avx512Dot : uint8_t { kFma, kDot };

/// A choice between the two, and why.
struct Avx512DotChoice {
  Avx512Dot flavour = Avx512Dot::kFma;
  double ratio = 0.0;  ///< FLOP/s of the dot instruction / of FMA; 0 where it was not measured
  std::string reason;
};

/// GANTRY_AVX512_DOT=fma|bf16 if set; else a probe of a few ms, made once: the median of 5 repeats
/// must be more than 1.3 times faster for the dot instruction to be taken.
/// @throws Error kInvalidArgument if GANTRY_AVX512_DOT has another value
const Avx512DotChoice& avx512_dot_choice();

/// What a caller needs of a kernel.
struct KernelRequest {
  DType weights = DType::kBF16;
  ActivationDType activations = ActivationDType::kBF16;
  IsaSet isas;
  Avx512Dot avx512_dot = Avx512Dot::kFma;
  bool batch_invariant = false;  ///< only kernels that are
  bool int8_rows = false;        ///< activations are int8 a token: integer arithmetic if possible
};

/// The first kernel of the list that can serve a request. A pure function of its argument.
/// @throws Error kUnsupported if there is none
const PanelGemmKernel& select_panel_gemm(const KernelRequest& request);

/// Why each better row of the list was refused, as "name: reason".
std::vector<std::string> refused_panel_gemms(const KernelRequest& request);

}  // namespace gantry
