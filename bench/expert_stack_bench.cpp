// Unfusing one layer in memory: views, and copies in each layout, next to memcpy of the same bytes.
// Sizes of Qwen3.5-35B-A3B: 256 experts, I = 512, H = 2048, bf16; GANTRY_BENCH_EXPERTS makes fewer.

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "loader/expert_stack.h"

namespace gantry {
namespace {

int num_experts() {
  const char* text = std::getenv("GANTRY_BENCH_EXPERTS");
  return text == nullptr ? 256 : std::atoi(text);
}

ExpertStack gate_up(std::vector<std::byte>& bytes, Orientation orientation, GateUp arrangement) {
  ExpertStack stack{.data = nullptr,
                    .element_bytes = 2,
                    .num_experts = num_experts(),
                    .out = 512,
                    .in = 2048,
                    .orientation = orientation,
                    .gate_up = arrangement};
  bytes.resize(static_cast<size_t>(stack.num_bytes()), std::byte{1});
  stack.data = bytes.data();
  return stack;
}

void views(benchmark::State& state) {
  std::vector<std::byte> bytes;
  const ExpertStack stack = gate_up(bytes, Orientation::kOutIn, GateUp::kConcatenated);
  for (auto _ : state) {
    for (int e = 0; e < stack.num_experts; ++e) {
      benchmark::DoNotOptimize(expert_view(stack, e, Part::kW1));
      benchmark::DoNotOptimize(expert_view(stack, e, Part::kW3));
    }
  }
}

void copies(benchmark::State& state, Orientation orientation, GateUp arrangement) {
  std::vector<std::byte> bytes;
  const ExpertStack stack = gate_up(bytes, orientation, arrangement);
  std::vector<std::byte> out(bytes.size(), std::byte{2});
  std::vector<std::byte*> gate;
  std::vector<std::byte*> up;
  const int64_t size = stack.out * stack.in * stack.element_bytes;
  for (int e = 0; e < stack.num_experts; ++e) {
    gate.push_back(out.data() + 2 * e * size);
    up.push_back(out.data() + (2 * e + 1) * size);
  }
  const Threads threads{.count = static_cast<int>(state.range(0)), .executor = {}};
  for (auto _ : state) {
    unfuse_gate_up(stack, gate, up, threads);
  }
  state.SetBytesProcessed(state.iterations() * stack.num_bytes());
}

void plain_memcpy(benchmark::State& state) {
  std::vector<std::byte> bytes;
  const ExpertStack stack = gate_up(bytes, Orientation::kOutIn, GateUp::kConcatenated);
  std::vector<std::byte> out(bytes.size(), std::byte{2});
  const Threads threads{.count = static_cast<int>(state.range(0)), .executor = {}};
  const int64_t piece = stack.out * stack.in * stack.element_bytes;
  for (auto _ : state) {
    parallel_for(threads, 2 * stack.num_experts, [&](int64_t p) {
      std::memcpy(out.data() + p * piece, bytes.data() + p * piece, static_cast<size_t>(piece));
    });
  }
  state.SetBytesProcessed(state.iterations() * stack.num_bytes());
}

BENCHMARK(views)->Unit(benchmark::kMicrosecond);
BENCHMARK(plain_memcpy)->Arg(1)->Arg(2)->UseRealTime();
BENCHMARK_CAPTURE(copies, out_in_concatenated, Orientation::kOutIn, GateUp::kConcatenated)
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime();
BENCHMARK_CAPTURE(copies, in_out_concatenated, Orientation::kInOut, GateUp::kConcatenated)
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime();
BENCHMARK_CAPTURE(copies, in_out_interleaved, Orientation::kInOut, GateUp::kInterleaved)
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime();

}  // namespace
}  // namespace gantry

BENCHMARK_MAIN();
