#pragma once

// `gantry bench` over several ranks: whole layers with dispatch and combine, and what they move.

#include <string>
#include <vector>

#include "tools/bench_case.h"
#include "tools/exchange_option.h"
#include "tools/rank_session.h"

namespace gantry::cli {

/// What to time. Tokens are those of one token group.
struct RankBenchOptions {
  std::string directory;  ///< of a checkpoint; empty: made-up weights
  std::string shape;
  std::string format;
  std::vector<int64_t> tokens;
  std::vector<std::string> routing;
  std::string activations;
  double seconds = 1.0;
  double rotate_gb = 1.5;  ///< of all ranks
  uint64_t seed = 1;
  std::vector<std::string> allow;
  ExchangeOption exchange;  ///< as asked, for the head of the table; `run` has it applied
  ParallelConfig parallel{};
  ExpertPlacement placement;
  FusedMoeOptions run;
};

/// Prints for each number of tokens the time of the slowest rank (median of its calls), tokens per
/// second in all and a rank, how evenly the ranks' experts were used (mean of the EP ranks' tokens
/// / their maximum, over the batches), and the bytes that a rank sends and receives for a layer.
/// Rank 0 prints. Collective where ranks are processes.
/// @throws Error kInternal if ranks that hold the same tokens end with different outputs
void bench_on_ranks(const RankBenchOptions& options, const RankSession& ranks,
                    const Output& output);

}  // namespace gantry::cli
