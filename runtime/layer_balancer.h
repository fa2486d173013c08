#pragma once

#include <cstdint>

#include "kernels/base/export.h"
#include "parallel/communicator.h"
#include "parallel/eplb.h"
#include "parallel/load_counters.h"
#include "runtime/fused_moe_layer.h"
#include "runtime/rebalance.h"

namespace gantry GANTRY_API {

struct BalanceOptions {
  int num_redundant = 0;    ///< R: copies besides the E experts
  int num_groups = 1;       ///< see EplbShape
  int num_nodes = 1;        ///< see EplbShape
  int window_steps = 1000;  ///< steps whose tokens count
  int interval_steps = 3000;
  /// The experts stay where they are unless the expected balancedness grows by more than this.
  double min_improvement = 0.0;
  RebalanceOptions rebalance{};
};

/// What balancing one layer has done so far, on one rank.
struct BalanceTotals {
  int64_t rebalances = 0;
  int64_t skipped = 0;         ///< intervals that would have improved nothing
  int64_t bytes_sent = 0;      ///< by this rank
  int64_t bytes_received = 0;  ///< by this rank
  int64_t stalls = 0;
};

/// Keeps the ranks of one layer equally busy: counts tokens, and every `interval_steps` moves the
/// experts to where EPLB wants them.
///
/// Every rank of the layer has one and steps it after the same forward calls.
class LayerBalancer {
 public:
  /// @param world see StagedRebalance; both must outlive this object
  /// @throws Error kInvalidArgument for options below 0, or an interval or window below 1
  LayerBalancer(FusedMoeLayer& layer, Communicator& world, const BalanceOptions& options);

  /// Counts the workspace's last call as one step; collective in the last step of an interval.
  /// @return whether the experts have moved. Then a workspace that was made for fewer slots than
  ///         max_slots() must be made anew.
  /// @throws Error as StagedRebalance does; the layer then is as it was
  bool step(const Workspace& workspace);

  /// The most slots that a rank can get.
  [[nodiscard]] int64_t max_slots() const noexcept;
  [[nodiscard]] const BalanceTotals& totals() const noexcept { return totals_; }
  [[nodiscard]] const LoadCounters& counters() const noexcept { return counters_; }

 private:
  bool balance();

  FusedMoeLayer* layer_;
  Communicator* world_;
  BalanceOptions options_;
  ParallelConfig parallel_;
  ExpertMap experts_;
  LoadCounters counters_;
  BalanceTotals totals_;
};

}  // namespace gantry
