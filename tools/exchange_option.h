#pragma once

#include <string>

#include "runtime/fused_moe_layer.h"

namespace CLI {
class App;
}

namespace gantry::cli {

/// --exchange, --exchange-slots, --combine, --reduce, --no-reduce, --sequence-parallel.
struct ExchangeOption {
  std::string exchange = "auto";
  std::string combine = "rank";
  std::string reduce = "rank";
  int slots = 0;
  bool no_reduce = false;
  bool sequence_parallel = false;

  [[nodiscard]] ExchangeOptions options() const;
  /// The same ranks with sequence_parallel as asked.
  [[nodiscard]] ParallelConfig config(ParallelConfig parallel) const;
  /// @param world null where ranks are threads
  /// @param options whose batch_invariant is set
  /// @throws Error kInvalidArgument naming what cannot be done together, and why
  void apply(const ParallelConfig& parallel, const Communicator* world, bool on_gpu,
             FusedMoeOptions& options) const;
  /// All of it, for comparison between ranks.
  [[nodiscard]] std::string text() const;
};

void add_exchange_options(CLI::App& app, ExchangeOption& option);

/// "exchange all_to_all (as asked), combine rank, sums in rank order"; empty for a single rank.
std::string describe_exchange(const ExchangeOption& option, const ParallelConfig& parallel,
                              bool on_gpu, int64_t top_k);

}  // namespace gantry::cli
