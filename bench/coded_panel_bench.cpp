// Times the two ways of multiplying with a coded panel on one core: in registers, and by decoding
// pieces first. The panel (32 columns, k 2048) stays in the L2 cache, so that what is seen is the
// kernel and not the memory. Where the ways cross is CodedGemmKernel::max_rows.

#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <utility>

#include "bench/support/machine_context.h"
#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/float_convert.h"
#include "kernels/fused_moe/matrix_rows.h"

namespace gantry::bench {
namespace {

constexpr int64_t kK = 2048;

constexpr WeightFormat kFormats[] = {
    {WeightElement::kE4M3, ScaleType::kF32, 128},
    {WeightElement::kE4M3, ScaleType::kNone, 0, false, true},
    {WeightElement::kInt8, ScaleType::kNone, 0, false, true},
    {WeightElement::kInt4, ScaleType::kBF16, 128},
    {WeightElement::kInt4, ScaleType::kF16, 32},
    {WeightElement::kInt4, ScaleType::kF16, 64},
    {WeightElement::kInt4, ScaleType::kF16, 128, true},
    {WeightElement::kE4M3, ScaleType::kE8M0, 32},
    {WeightElement::kUInt4, ScaleType::kF16, 32, true},
    {WeightElement::kInt8, ScaleType::kF16, 32},
    {WeightElement::kE2M1, ScaleType::kE8M0, 32},
    {WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true},
};

void time_format(benchmark::State& state, const WeightFormat& format, ActivationDType activations,
                 bool in_registers) {
  const bool int8 = activations == ActivationDType::kInt8;
  const KernelRequest request{.activations = int8 ? ActivationDType::kScheme : activations,
                              .isas = host_isas(),
                              .avx512_dot = avx512_dot_choice().flavour,
                              .int8_rows = int8};
  MatrixKernels kernels = select_matrix_kernels(request, format);
  const int64_t rows = state.range(0);
  if (int8 && kernels.rows != ActivationDType::kInt8) {
    state.SkipWithError("no integer kernel for this format here");
    return;
  }
  if (!in_registers) kernels.coded = {};
  if (in_registers && kernels.coded_for(rows) == nullptr) {
    state.SkipWithError("this many rows are decoded first");
    return;
  }
  const PackedLayout layout{DType::kF32, /*gated=*/false, kPanelWidth, kK, format};
  const CodedPanel coded = layout.coded_panel();
  const int64_t stride = row_stride_bytes(kernels, layout);
  ByteBuffer x(static_cast<size_t>(rows * stride));
  ByteBuffer panel(static_cast<size_t>(layout.bytes()));
  Buffer<float> c(static_cast<size_t>(kMaxMultiplyRows * kPanelWidth));
  const DType x_type = kernels.rows == ActivationDType::kBF16 ? DType::kBF16 : DType::kF32;
  const float one = 1.0F;
  for (int64_t i = 0; i < rows * stride / size_of(x_type); ++i)
    convert_from_f32(&one, 1, x_type, x.data() + i * size_of(x_type));
  for (auto _ : state) {
    multiply_panel({.kernels = kernels,
                    .layout = layout,
                    .coded = coded,
                    .x = x.data(),
                    .x_stride = stride,
                    .num_rows = rows,
                    .matrix_rows = rows,
                    .panel = panel.data(),
                    .c = c.data(),
                    .next = nullptr});
    benchmark::ClobberMemory();
  }
  const auto iterations = static_cast<double>(state.iterations());
  state.counters["flop/s"] = benchmark::Counter(
      static_cast<double>(2 * rows * kPanelWidth * kK) * iterations, benchmark::Counter::kIsRate);
  state.counters["weights B/s"] = benchmark::Counter(
      static_cast<double>(layout.owned_bytes()) * iterations, benchmark::Counter::kIsRate);
}

void register_all() {
  for (const auto activations :
       {ActivationDType::kBF16, ActivationDType::kF32, ActivationDType::kInt8}) {
    for (const WeightFormat& format : kFormats) {
      for (const bool in_registers : {true, false}) {
        const std::string name = "coded_panel/" + std::string(to_string(activations)) + "/" +
                                 to_string(format) +
                                 (in_registers ? "/in registers" : "/decoded first");
        auto* bench = benchmark::RegisterBenchmark(
            name.c_str(), [format, activations, in_registers](benchmark::State& state) {
              time_format(state, format, activations, in_registers);
            });
        bench->ArgName("rows")->Unit(benchmark::kMicrosecond);
        for (const int64_t rows : {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128})
          bench->Arg(rows);
      }
    }
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
