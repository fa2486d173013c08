// Times every panel GEMM kernel on one core: a panel of w13 of Qwen3-30B-A3B (32 columns, k 2048)
// that stays in the L2 cache, so that what is seen is the kernel and not the memory.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>

#include "bench/support/machine_context.h"
#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"

namespace gantry::bench {
namespace {

constexpr int64_t kK = 2048;

void time_kernel(benchmark::State& state, const PanelGemmKernel& kernel) {
  if (!host_isas().contains(kernel.isa)) {
    state.SkipWithError(("needs " + std::string(to_string(kernel.isa))).c_str());
    return;
  }
  const int64_t rows = state.range(0);
  const int64_t stride = kernel.row_stride_bytes(kK);
  const PackedLayout layout{kernel.weights, /*gated=*/false, kPanelWidth, kK};
  ByteBuffer x(static_cast<size_t>(rows * stride));
  ByteBuffer panel(static_cast<size_t>(layout.bytes()));
  Buffer<float> c(static_cast<size_t>(kMaxPanelRows * kPanelWidth));
  const bool bf16_rows = kernel.rows == ActivationDType::kBF16;
  const float one = 1.0F;
  for (int64_t i = 0; i < rows * stride / (bf16_rows ? 2 : 4); ++i) {
    const DType dtype = bf16_rows ? DType::kBF16 : DType::kF32;
    convert_from_f32(&one, 1, dtype, x.data() + i * size_of(dtype));
  }
  for (int64_t i = 0; i < kPanelWidth * kK; ++i)
    convert_from_f32(&one, 1, kernel.weights, panel.data() + i * size_of(kernel.weights));
  const PanelGemm call{.x = x.data(),
                       .x_stride = stride,
                       .panel = panel.data(),
                       .k = kK,
                       .num_rows = rows,
                       .c = c.data(),
                       .next = nullptr};
  for (auto _ : state) {
    kernel.run(call);
    benchmark::ClobberMemory();
  }
  if (c[0] != static_cast<float>(kK)) state.SkipWithError("wrong result");
  state.counters["flop/s"] =
      benchmark::Counter(static_cast<double>(2 * rows * kPanelWidth * kK * state.iterations()),
                         benchmark::Counter::kIsRate);
}

void register_all() {
  for (const PanelGemmKernel& kernel : panel_gemm_kernels()) {
    const std::string name = "panel_gemm/" + std::string(kernel.name);
    benchmark::RegisterBenchmark(name.c_str(),
                                 [&kernel](benchmark::State& state) { time_kernel(state, kernel); })
        ->ArgName("rows")
        ->Arg(1)
        ->Arg(4)
        ->Arg(12)
        ->Arg(16)
        ->Arg(48)
        ->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace
}  // namespace gantry::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  gantry::bench::add_machine_context();
  gantry::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
}
