#include "kernels/grouped_gemm/panel_gemm_kernels.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "kernels/ceilings/peak_loops.h"
#include "kernels/grouped_gemm/packed_layout.h"

namespace gantry {
namespace {

constexpr auto kF32Rows = ActivationDType::kF32;
constexpr auto kBF16Rows = ActivationDType::kBF16;

// Best first. A new kernel is one new file and one new row.
constexpr PanelGemmKernel kKernels[] = {
    {"bf16_amx_32x32", Isa::kAmxBf16, DType::kBF16, kBF16Rows, true, amx::panel_gemm_bf16},
    {"bf16_amx_32x32_emulated", Isa::kAmxEmulated, DType::kBF16, kBF16Rows, true,
     scalar::panel_gemm_bf16_amx_emulated},
    {"bf16_avx512_dot_12x32", Isa::kAvx512Bf16, DType::kBF16, kBF16Rows, true,
     avx512::panel_gemm_bf16_dot},
    {"bf16_avx512_fma_12x32", Isa::kAvx512, DType::kBF16, kF32Rows, true, avx512::panel_gemm_bf16},
    {"bf16_avx2_6x16", Isa::kAvx2, DType::kBF16, kF32Rows, true, avx2::panel_gemm_bf16},
    {"bf16_scalar", Isa::kScalar, DType::kBF16, kF32Rows, true, scalar::panel_gemm_bf16},
    {"f16_avx512_fma_12x32", Isa::kAvx512, DType::kF16, kF32Rows, true, avx512::panel_gemm_f16},
    {"f16_avx2_6x16", Isa::kAvx2, DType::kF16, kF32Rows, true, avx2::panel_gemm_f16},
    {"f16_scalar", Isa::kScalar, DType::kF16, kF32Rows, true, scalar::panel_gemm_f16},
    {"f32_avx512_fma_12x32", Isa::kAvx512, DType::kF32, kF32Rows, true, avx512::panel_gemm_f32},
    {"f32_avx2_6x16", Isa::kAvx2, DType::kF32, kF32Rows, true, avx2::panel_gemm_f32},
    {"f32_scalar", Isa::kScalar, DType::kF32, kF32Rows, true, scalar::panel_gemm_f32},
};

// Empty if the kernel can serve the request.
std::string refusal(const PanelGemmKernel& kernel, const KernelRequest& request) {
  if (!request.isas.contains(kernel.isa)) return fmt::format("needs {}", to_string(kernel.isa));
  if (kernel.rows == kBF16Rows && request.activations != kBF16Rows) {
    return "rounds activations to bf16";
  }
  if (kernel.isa == Isa::kAvx512Bf16 && request.avx512_dot == Avx512Dot::kFma) {
    return "FMA is as fast here (see avx512 dot)";
  }
  if (request.batch_invariant && !kernel.batch_invariant) return "not batch-invariant";
  return "";
}

double seconds_of(void (*loop)(int64_t) noexcept, int64_t steps) {
  const auto start = std::chrono::steady_clock::now();
  loop(steps);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Avx512DotChoice choose_avx512_dot() {
  const char* value = std::getenv("GANTRY_AVX512_DOT");
  if (value != nullptr && *value != '\0') {
    const std::string_view wanted = value;
    GANTRY_CHECK(wanted == "fma" || wanted == "bf16", ErrorCode::kInvalidArgument,
                 "GANTRY_AVX512_DOT: expected fma or bf16, found '{}'", wanted);
    return {wanted == "bf16" ? Avx512Dot::kDot : Avx512Dot::kFma, 0.0,
            fmt::format("GANTRY_AVX512_DOT={}", wanted)};
  }
  if (!detected_isas().contains(Isa::kAvx512Bf16)) {
    return {Avx512Dot::kFma, 0.0, "the CPU has no AVX512_BF16"};
  }
  constexpr int64_t kSteps = 20000;  // about 0.1 ms a run
  constexpr size_t kRepeats = 5;
  constexpr double kNeeded = 1.3;
  constexpr double kFlopRatio =
      static_cast<double>(avx512::kPeakDotFlop) / static_cast<double>(avx512::kPeakFmaFlop);
  double ratios[kRepeats];
  seconds_of(avx512::peak_fma, kSteps);  // wakes the vector units
  for (double& ratio : ratios) {
    const double fma = seconds_of(avx512::peak_fma, kSteps);
    const double dot = seconds_of(avx512::peak_dot_bf16, kSteps);
    ratio = kFlopRatio * fma / dot;
  }
  std::sort(std::begin(ratios), std::end(ratios));
  const double median = ratios[kRepeats / 2];
  const bool dot = median > kNeeded;
  return {dot ? Avx512Dot::kDot : Avx512Dot::kFma, median,
          fmt::format("probe: vdpbf16ps {:.2f} times the FLOP/s of FMA, {} {}", median,
                      dot ? "more than" : "not more than", kNeeded)};
}

}  // namespace

std::string_view to_string(ActivationDType dtype) noexcept {
  switch (dtype) {
    case ActivationDType::kF32:
      return "f32";
    case ActivationDType::kBF16:
      return "bf16";
    case ActivationDType::kScheme:
      return "scheme";
    case ActivationDType::kInt8:
      return "int8";
  }
  return "unknown";
}

int64_t padded_stride(int64_t bytes) noexcept {
  constexpr int64_t kLine = 64;
  const int64_t lines = (bytes + kLine - 1) / kLine;
  // An odd number of lines: consecutive rows start in different sets whatever k is.
  return (lines % 2 == 0 ? lines + 1 : lines) * kLine;
}

int64_t PanelGemmKernel::row_stride_bytes(int64_t k) const noexcept {
  return padded_stride(padded_depth(k) * (rows == ActivationDType::kBF16 ? 2 : 4));
}

std::span<const PanelGemmKernel> panel_gemm_kernels() noexcept { return kKernels; }

const Avx512DotChoice& avx512_dot_choice() {
  static const Avx512DotChoice choice = choose_avx512_dot();
  return choice;
}

const PanelGemmKernel& select_panel_gemm(const KernelRequest& request) {
  for (const PanelGemmKernel& kernel : kKernels) {
    if (kernel.weights == request.weights && refusal(kernel, request).empty()) return kernel;
  }
  fail(ErrorCode::kUnsupported, "no GEMM kernel reads {} weights on {}", to_string(request.weights),
       to_string(request.isas));
}

std::vector<std::string> refused_panel_gemms(const KernelRequest& request) {
  std::vector<std::string> refused;
  for (const PanelGemmKernel& kernel : kKernels) {
    if (kernel.weights != request.weights) continue;
    const std::string reason = refusal(kernel, request);
    if (reason.empty()) break;
    refused.push_back(fmt::format("{}: {}", kernel.name, reason));
  }
  return refused;
}

}  // namespace gantry
