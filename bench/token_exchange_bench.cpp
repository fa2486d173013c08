// Latency of dispatch and combine next to all-to-alls of the same bytes, ranks as threads of this
// process: token_exchange_bench [tokens a rank ...]. token_exchange_mpi_bench is the same for ranks
// that mpirun starts.

#include <cstdio>
#include <exception>

#include "bench/support/exchange_latency.h"

int main(int argc, char** argv) {
  try {
    gantry::bench::print_exchange_latencies(
        gantry::run_local_ranks, {2, 4},
        gantry::bench::parse_token_counts(argc, argv, {1, 8, 64, 512}));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
