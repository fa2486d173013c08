#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/communicator.h"
#include "parallel/expert_map.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// How many tokens the slots of one rank computed in one layer: in all, and of each logical expert
/// in the last steps. A step costs one addition for each slot and two for each expert.
///
/// Not thread-safe.
class LoadCounters {
 public:
  /// @param window_steps steps that the window holds, at least 1
  /// @throws Error kInvalidArgument
  LoadCounters(int num_experts, int window_steps);

  /// Adds what one forward call computed (Workspace::tokens_per_slot).
  /// @param slot_to_logical the expert of each slot (ExpertMap::slot_to_logical)
  void record(std::span<const int32_t> slot_to_logical, std::span<const int64_t> tokens_per_slot);
  /// Ends a step, of any number of calls: the oldest step leaves a full window.
  void end_step();

  [[nodiscard]] int64_t num_steps() const noexcept { return num_steps_; }
  /// [E] this rank's tokens of each logical expert in the window, and in the step that runs.
  [[nodiscard]] std::span<const int64_t> window() const noexcept { return window_; }
  /// [E] this rank's tokens of each logical expert since the start.
  [[nodiscard]] std::span<const int64_t> total() const noexcept { return total_; }
  /// [L] of each slot since the slots were last another number or `reset_slots` was called.
  [[nodiscard]] std::span<const int64_t> slots() const noexcept { return slots_; }
  /// After a rebalance: slots hold other experts. Logical counts stay.
  void reset_slots() { slots_.clear(); }

 private:
  size_t num_experts_;
  int64_t num_steps_ = 0;
  std::vector<std::vector<int64_t>> steps_;  // [window_steps][E], a ring
  std::vector<int64_t> window_;              // [E] sum of steps_
  std::vector<int64_t> total_;               // [E]
  std::vector<int64_t> slots_;               // [L]
};

/// Collective. The element-wise sum over EP ranks of counts that are equally long on every rank,
/// on every rank. Ranks of one TP group count the same tokens, which are taken once.
std::vector<int64_t> sum_over_ep_ranks(std::span<const int64_t> counts,
                                       const ParallelConfig& parallel, Communicator& world);

/// Collective. Tokens of each physical expert, [P], from every rank's counts of its slots.
std::vector<int64_t> gather_physical_counts(std::span<const int64_t> tokens_per_slot,
                                            const ExpertMap& experts,
                                            const ParallelConfig& parallel, Communicator& world);

}  // namespace gantry
