// Latency of dispatch and combine next to plain all-to-alls of the same bytes, ranks as threads of
// this process: token_exchange_bench [tokens a rank ...]. A launcher's program calls
// print_exchange_latencies with a runner of its own.

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "bench/support/exchange_latency.h"

int main(int argc, char** argv) {
  std::vector<int64_t> tokens;
  for (int i = 1; i < argc; ++i)
    tokens.push_back(std::atoll(argv[i]));
  if (tokens.empty()) tokens = {1, 8, 64, 512};
  for (const int64_t count : tokens) {
    if (count >= 1 && count <= 65536) continue;
    std::fprintf(stderr, "expected numbers of tokens from 1 to 65536\n");
    return 2;
  }
  try {
    gantry::bench::print_exchange_latencies(gantry::run_local_ranks, {2, 4}, tokens);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
