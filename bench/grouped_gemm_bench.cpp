// Times every grouped GEMM kernel on the shape of one expert's w13 in Qwen3-30B-A3B, with all
// threads. Calls walk over more weights than caches hold, as the experts of a model do.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "bench/support/machine_context.h"
#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/parallel_for.h"
#include "kernels/grouped_gemm/grouped_gemm_kernels.h"

namespace gantry::bench {
namespace {

constexpr int64_t kK = 2048;           // hidden_size
constexpr int64_t kN = 2 * 768;        // gate and up rows of moe_intermediate_size 768
constexpr int64_t kNumExperts = 32;    // 200 MB of bf16
constexpr int64_t kBlockColumns = 64;  // as grouped_gemm() cuts a call into tasks

struct Case {
  const GroupedGemmKernel& kernel;
  int64_t rows;
  std::vector<float> x;
  Buffer<std::byte> weights;
  std::vector<float> y;

  Case(const GroupedGemmKernel& kernel_to_run, int64_t num_rows)
      : kernel(kernel_to_run),
        rows(num_rows),
        x(static_cast<size_t>(num_rows * kK)),
        weights(static_cast<size_t>(kNumExperts * expert_bytes())),
        y(static_cast<size_t>(num_rows * kN)) {
    std::mt19937 rng(1);
    std::uniform_real_distribution<float> value(-1.0F, 1.0F);
    std::generate(x.begin(), x.end(), [&] { return value(rng); });
    // One random expert, copied: the kernels' speed does not depend on values.
    std::vector<float> expert(static_cast<size_t>(kN * kK));
    std::generate(expert.begin(), expert.end(), [&] { return value(rng); });
    for (int64_t e = 0; e < kNumExperts; ++e) {
      convert_from_f32(expert.data(), kN * kK, kernel.dtype, weights.data() + e * expert_bytes());
    }
  }

  [[nodiscard]] int64_t expert_bytes() const { return kN * kK * size_of(kernel.dtype); }

  void run(int64_t expert) {
    parallel_for({}, kN / kBlockColumns, [&](int64_t block) {
      kernel.run({.x = x.data(),
                  .weight = weights.data() + expert * expert_bytes(),
                  .bias = nullptr,
                  .y = y.data(),
                  .num_rows = rows,
                  .n = kN,
                  .k = kK,
                  .n_begin = block * kBlockColumns,
                  .n_end = (block + 1) * kBlockColumns});
    });
  }

  // Sums of kK products below 1 in f32: an error near kK * 2^-24 at worst.
  [[nodiscard]] bool last_row_is_right() const {
    const float* row = x.data() + (rows - 1) * kK;
    for (int64_t n = 0; n < kN; ++n) {
      double expected = 0;
      for (int64_t k = 0; k < kK; ++k) {
        expected += double{row[k]} * load_as_f32(weights.data(), kernel.dtype, n * kK + k);
      }
      const float found = y[static_cast<size_t>((rows - 1) * kN + n)];
      if (!(std::abs(found - expected) < kK * 0x1p-20)) return false;
    }
    return true;
  }
};

void time_kernel(benchmark::State& state, const GroupedGemmKernel& kernel) {
  if (!host_isas().contains(kernel.isa)) {
    state.SkipWithError(("needs " + std::string(to_string(kernel.isa))).c_str());
    return;
  }
  Case c(kernel, state.range(0));
  int64_t expert = 0;
  for (auto _ : state) {
    c.run(expert);
    expert = (expert + 1) % kNumExperts;
  }
  if (!c.last_row_is_right()) state.SkipWithError("wrong result");
  const auto calls = static_cast<double>(state.iterations());
  const auto rows = static_cast<double>(c.rows);
  const auto bytes = static_cast<double>(c.expert_bytes()) + 4.0 * rows * (kK + kN);
  state.counters["flop/s"] =
      benchmark::Counter(2.0 * rows * kN * kK * calls, benchmark::Counter::kIsRate);
  state.counters["bytes/s"] = benchmark::Counter(bytes * calls, benchmark::Counter::kIsRate);
}

void register_all() {
  for (const GroupedGemmKernel& kernel : grouped_gemm_kernels()) {
    const std::string name = "grouped_gemm/" + std::string(kernel.name);
    benchmark::RegisterBenchmark(name.c_str(),
                                 [&kernel](benchmark::State& state) { time_kernel(state, kernel); })
        ->ArgName("rows")
        ->Arg(1)
        ->Arg(8)
        ->Arg(64)
        ->Arg(512)
        ->UseRealTime()
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
