// Measures what this machine can do at best, so that other numbers can be read as a part of it:
// bytes read from memory and f32 multiply-adds, with all threads.

#include <benchmark/benchmark.h>
#include <immintrin.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "bench/support/machine_context.h"
#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/parallel_for.h"

namespace gantry::bench {
namespace {

// A multiply-add takes 4 cycles and a core starts two of them in each: 8 must be in flight. 12
// leave some slack and fit into the 16 registers of AVX2.
constexpr int kChains = 12;
constexpr int64_t kSteps = 1 << 20;

__attribute__((target("avx512f"))) float fma_avx512() {
  __m512 sums[kChains];
  for (__m512& sum : sums)
    sum = _mm512_set1_ps(1.0F);
  const __m512 factor = _mm512_set1_ps(0.999F);
  for (int64_t step = 0; step < kSteps; ++step) {
    for (__m512& sum : sums)
      sum = _mm512_fmadd_ps(sum, factor, factor);
  }
  __m512 total = sums[0];
  for (int i = 1; i < kChains; ++i)
    total = _mm512_add_ps(total, sums[i]);
  return _mm512_cvtss_f32(total);
}

__attribute__((target("avx2,fma"))) float fma_avx2() {
  __m256 sums[kChains];
  for (__m256& sum : sums)
    sum = _mm256_set1_ps(1.0F);
  const __m256 factor = _mm256_set1_ps(0.999F);
  for (int64_t step = 0; step < kSteps; ++step) {
    for (__m256& sum : sums)
      sum = _mm256_fmadd_ps(sum, factor, factor);
  }
  __m256 total = sums[0];
  for (int i = 1; i < kChains; ++i)
    total = _mm256_add_ps(total, sums[i]);
  return _mm256_cvtss_f32(total);
}

void time_fma(benchmark::State& state, Isa isa, int lanes, float (*chains)()) {
  if (!host_isas().contains(isa)) {
    state.SkipWithError("this CPU lacks the instruction set");
    return;
  }
  const int threads = available_cpus();
  std::vector<float> results(static_cast<size_t>(threads));
  for (auto _ : state) {
    parallel_for({}, threads, [&](int64_t i) { results[static_cast<size_t>(i)] = chains(); });
    benchmark::DoNotOptimize(results.data());
  }
  const double flop = 2.0 * lanes * kChains * static_cast<double>(kSteps) * threads;
  state.counters["flop/s"] = benchmark::Counter(flop * static_cast<double>(state.iterations()),
                                                benchmark::Counter::kIsRate);
}

void time_read(benchmark::State& state) {
  constexpr int64_t kWords = (int64_t{1} << 30) / 8;
  constexpr int64_t kTasks = 1024;  // 1 MiB each
  Buffer<uint64_t> buffer(kWords);
  std::iota(buffer.span().begin(), buffer.span().end(), uint64_t{0});
  std::vector<uint64_t> results(kTasks);
  for (auto _ : state) {
    parallel_for({}, kTasks, [&](int64_t task) {
      const uint64_t* begin = buffer.data() + task * (kWords / kTasks);
      results[static_cast<size_t>(task)] =
          std::accumulate(begin, begin + kWords / kTasks, uint64_t{0});
    });
    benchmark::DoNotOptimize(results.data());
  }
  state.counters["bytes/s"] = benchmark::Counter(
      8.0 * static_cast<double>(kWords) * static_cast<double>(state.iterations()),
      benchmark::Counter::kIsRate);
}

BENCHMARK(time_read)->Name("peak/read_1GiB")->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(time_fma, avx512, Isa::kAvx512, 16, fma_avx512)
    ->Name("peak/f32_fma_avx512")
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(time_fma, avx2, Isa::kAvx2, 8, fma_avx2)
    ->Name("peak/f32_fma_avx2")
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace gantry::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  gantry::bench::add_machine_context();
  benchmark::RunSpecifiedBenchmarks();
}
