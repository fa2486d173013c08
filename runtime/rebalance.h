#pragma once

#include <cstdint>
#include <memory>

#include "kernels/base/export.h"
#include "parallel/communicator.h"
#include "parallel/expert_map.h"
#include "parallel/slot_moves.h"
#include "parallel/stall_watchdog.h"
#include "runtime/fused_moe_layer.h"

namespace gantry GANTRY_API {

struct RebalanceOptions {
  StallLimits stall;
};

/// What one rank did in one rebalance.
struct RebalanceStats {
  int64_t bytes_sent = 0;  ///< to other ranks
  int64_t bytes_received = 0;
  int64_t bytes_copied = 0;  ///< within this rank
  int slots_kept = 0;        ///< same slot, same expert
  int slots_copied = 0;      ///< from another slot of this rank
  int slots_received = 0;    ///< from another rank
  int rounds = 0;            ///< exchanges, the same on all ranks
  int stalls = 0;            ///< steps that took longer than StallLimits::warn_after
  double seconds = 0.0;
};

/// A rebalance of one layer that is ready to be switched on: every expert slot of the new map lies
/// in memory of its own, and every rank has checked its slots.
///
/// Slots are whole (weights, scales, biases, input scales: loader/expert_slot.h), so any weight
/// format moves alike. The sender's digest of each slot is compared on arrival. While this object
/// lives, forward calls run on the old slots (the layer holds both), and the layer refuses
/// replace_weights and another rebalance. Peak memory: the layer's old and new slots.
///
/// Forward calls of several ranks belong together: all ranks must commit between the same two.
class StagedRebalance {
 public:
  /// Collective: all ranks of `world` pass the same map. On a mistake, a failed check or a failed
  /// allocation on any rank, all ranks throw the same Error and keep their old slots; the group
  /// stays usable. If a rank stalls, the group is aborted.
  ///
  /// TP ranks move their own shards. EP ranks may hold no slot before or after.
  /// @param layer must outlive this object
  /// @param world the layer's ranks; the layer's own communicator, or (to move while forward calls
  ///        run) another one of the same ranks
  /// @throws Error kInvalidArgument if ranks disagree on the maps or the slot layout, or if the
  ///         layer is being rebalanced; kIo for bytes that changed on the way; kOutOfMemory
  StagedRebalance(FusedMoeLayer& layer, ExpertMap new_map, Communicator& world,
                  const RebalanceOptions& options = {});
  StagedRebalance(const StagedRebalance&) = delete;
  StagedRebalance& operator=(const StagedRebalance&) = delete;
  /// Without commit the old slots stay.
  ~StagedRebalance();

  /// Not collective, cannot fail. Calls that are running end with the old slots, which are released
  /// with the last of them. A rank that now holds more slots needs another workspace.
  void commit() noexcept;

  [[nodiscard]] const RebalanceStats& stats() const noexcept { return stats_; }

 private:
  void stage(ExpertMap new_map, Communicator& world, StallWatchdog& watchdog);

  FusedMoeLayer* layer_;
  std::shared_ptr<const LayerOperands> before_;
  std::shared_ptr<const LayerOperands> after_;  // null until staged and once committed
  bool holds_layer_ = false;                    // layer_->moving_ is ours
  RebalanceStats stats_;
};

/// Stages and commits. Collective; no forward call of the layer may be waiting for another rank.
RebalanceStats rebalance(FusedMoeLayer& layer, const ExpertMap& new_map, Communicator& world,
                         const RebalanceOptions& options = {});

}  // namespace gantry
