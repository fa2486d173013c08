#include "runtime/layer_balancer.h"

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"

namespace gantry {

LayerBalancer::LayerBalancer(FusedMoeLayer& layer, Communicator& world,
                             const BalanceOptions& options)
    : layer_(&layer),
      world_(&world),
      options_(options),
      parallel_(layer.weights()->parallel),
      experts_(layer.experts()),
      counters_(experts_.num_experts(), options.window_steps) {
  GANTRY_CHECK(
      options.num_redundant >= 0 && options.interval_steps >= 1 && options.min_improvement >= 0.0,
      ErrorCode::kInvalidArgument,
      "balancing: {} redundant experts, an interval of {} steps, an improvement of {}",
      options.num_redundant, options.interval_steps, options.min_improvement);
}

int64_t LayerBalancer::max_slots() const noexcept {
  const int64_t num_physical = experts_.num_experts() + options_.num_redundant;
  return (num_physical + parallel_.ep_size - 1) / parallel_.ep_size;
}

bool LayerBalancer::step(const Workspace& workspace) {
  counters_.record(experts_.slot_to_logical(parallel_.ep_rank()), workspace.tokens_per_slot());
  counters_.end_step();
  return counters_.num_steps() % options_.interval_steps == 0 && balance();
}

bool LayerBalancer::balance() {
  const std::vector<int64_t> load = sum_over_ep_ranks(counters_.window(), parallel_, *world_);
  const EplbPlan plan =
      balance_experts(load, {.num_physical = experts_.num_experts() + options_.num_redundant,
                             .num_ranks = parallel_.ep_size,
                             .num_groups = options_.num_groups,
                             .num_nodes = options_.num_nodes});
  const ExpertMap planned = keep_slots(
      experts_, ExpertMap::with_redundancy(experts_.num_experts(), plan.physical_to_logical,
                                           parallel_.ep_size, Placement::kLinear));
  const double before = balancedness(expected_rank_loads(experts_, load));
  const double after = balancedness(expected_rank_loads(planned, load));
  if (after <= before + options_.min_improvement) {
    ++totals_.skipped;
    return false;
  }
  if (world_->rank() == 0) {
    log(LogLevel::kInfo, "layer {}: eplb ({}: {}): expected balancedness {:.3f} -> {:.3f}",
        layer_->weights()->spec.layer, to_string(plan.policy), plan.reason, before, after);
  }
  const RebalanceStats stats = rebalance(*layer_, planned, *world_, options_.rebalance);
  experts_ = planned;
  counters_.reset_slots();
  ++totals_.rebalances;
  totals_.bytes_sent += stats.bytes_sent;
  totals_.bytes_received += stats.bytes_received;
  totals_.stalls += stats.stalls;
  return true;
}

}  // namespace gantry
