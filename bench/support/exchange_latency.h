#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/exchange_options.h"

namespace gantry::bench {

/// Runs a body on `num_ranks` ranks, with the communicator of each: `run_local_ranks`, or a program
/// started by a launcher that calls the body once, with its own communicator.
using RankRunner =
    std::function<void(int num_ranks, const std::function<void(Communicator& world)>& body)>;

/// An all-to-all of somebody else's, as Communicator::all_to_all.
using PlainAllToAll =
    std::function<void(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                       std::span<std::byte> receive, std::span<const int64_t> receive_bytes)>;

struct ExchangeLatencyCase {
  int ep_size = 2;         ///< each rank has tokens of its own (dp_size = ep_size)
  int64_t num_tokens = 8;  ///< of each rank
  int64_t hidden_size = 2048;
  int64_t top_k = 8;
  int64_t num_experts = 128;
  ExchangeOptions options{};
  double seconds = 0.3;
  PlainAllToAll plain{};  ///< empty: not measured
};

/// Dispatch and combine without experts between them, and two all-to-alls that move the same bytes
/// a rank, evenly over the others: the communicator's, and plain ones; in turn, medians over
/// rounds.
struct ExchangeLatency {
  double exchange_us = 0.0;
  double all_to_all_us = 0.0;
  double plain_us = 0.0;    ///< 0: not measured
  int64_t bytes = 0;        ///< received by rank 0 in one call
  int64_t collectives = 0;  ///< in one call
};

/// The result of rank 0; ranks of other processes than its own return zeros.
ExchangeLatency measure_exchange(const RankRunner& run, const ExchangeLatencyCase& c);

/// The numbers of tokens that a program's arguments name; `otherwise` if there are none.
/// @throws Error kInvalidArgument for anything but numbers from 1 to 65536
std::vector<int64_t> parse_token_counts(int argc, char** argv, std::vector<int64_t> otherwise);

/// Measures both exchanges at each size and prints a table on stdout, on the process of rank 0.
/// @param plain, plain_name what to compare with, and what it is
void print_exchange_latencies(const RankRunner& run, const std::vector<int>& ep_sizes,
                              const std::vector<int64_t>& tokens, const PlainAllToAll& plain = {},
                              const char* plain_name = "");

}  // namespace gantry::bench
