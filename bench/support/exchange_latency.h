#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/exchange_options.h"

namespace gantry::bench {

/// Runs a body on `num_ranks` ranks, with the communicator of each: `run_local_ranks`, or a program
/// started by a launcher that calls the body once, with its own communicator.
using RankRunner =
    std::function<void(int num_ranks, const std::function<void(Communicator& world)>& body)>;

struct ExchangeLatencyCase {
  int ep_size = 2;         ///< each rank has tokens of its own (dp_size = ep_size)
  int64_t num_tokens = 8;  ///< of each rank
  int64_t hidden_size = 2048;
  int64_t top_k = 8;
  int64_t num_experts = 128;
  ExchangeOptions options{};
  double seconds = 0.3;
};

/// Dispatch and combine without experts between them, and two plain all-to-alls that move the same
/// bytes a rank, evenly over the others; in turn, medians over rounds.
struct ExchangeLatency {
  double exchange_us = 0.0;
  double plain_us = 0.0;
  int64_t bytes = 0;        ///< received by rank 0 in one call
  int64_t collectives = 0;  ///< in one call
};

/// The result of rank 0; ranks of other processes than its own return zeros.
ExchangeLatency measure_exchange(const RankRunner& run, const ExchangeLatencyCase& c);

/// Measures both exchanges at each size and prints a table on stdout, on the process of rank 0.
void print_exchange_latencies(const RankRunner& run, const std::vector<int>& ep_sizes,
                              const std::vector<int64_t>& tokens);

}  // namespace gantry::bench
