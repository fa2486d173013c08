#include "parallel/load_counters.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// Every TP group's first rank sends `bytes_of(ep_rank)`, the others nothing.
template <typename BytesOf>
std::vector<int64_t> gather_counts(std::span<const int64_t> own, const ParallelConfig& parallel,
                                   Communicator& world, BytesOf count_of) {
  std::vector<int64_t> bytes(static_cast<size_t>(world.size()), 0);
  int64_t total = 0;
  for (int ep_rank = 0; ep_rank < parallel.ep_size; ++ep_rank) {
    const int64_t count = count_of(ep_rank);
    bytes[static_cast<size_t>(ep_rank * parallel.tp_size)] =
        count * static_cast<int64_t>(sizeof(int64_t));
    total += count;
  }
  std::vector<int64_t> all(static_cast<size_t>(total));
  world.all_gather(std::as_bytes(parallel.tp_rank() == 0 ? own : own.first(0)),
                   std::as_writable_bytes(std::span(all)), bytes);
  return all;
}

}  // namespace

LoadCounters::LoadCounters(int num_experts, int window_steps)
    : num_experts_(static_cast<size_t>(num_experts)) {
  GANTRY_CHECK(num_experts >= 1 && window_steps >= 1, ErrorCode::kInvalidArgument,
               "load counters: {} experts, a window of {} steps: expected at least 1 of each",
               num_experts, window_steps);
  steps_.assign(static_cast<size_t>(window_steps), std::vector<int64_t>(num_experts_, 0));
  window_.assign(num_experts_, 0);
  total_.assign(num_experts_, 0);
}

void LoadCounters::record(std::span<const int32_t> slot_to_logical,
                          std::span<const int64_t> tokens_per_slot) {
  GANTRY_CHECK(slot_to_logical.size() == tokens_per_slot.size(), ErrorCode::kInvalidArgument,
               "load counters: tokens of {} slots, {} slots are known", tokens_per_slot.size(),
               slot_to_logical.size());
  slots_.resize(tokens_per_slot.size(), 0);
  std::vector<int64_t>& step = steps_[static_cast<size_t>(num_steps_) % steps_.size()];
  for (size_t slot = 0; slot < tokens_per_slot.size(); ++slot) {
    const auto expert = static_cast<size_t>(slot_to_logical[slot]);
    GANTRY_CHECK(expert < num_experts_, ErrorCode::kInvalidArgument,
                 "load counters: slot {}: expected an expert below {}, found {}", slot,
                 num_experts_, slot_to_logical[slot]);
    const int64_t tokens = tokens_per_slot[slot];
    slots_[slot] += tokens;
    step[expert] += tokens;
    window_[expert] += tokens;
    total_[expert] += tokens;
  }
}

void LoadCounters::end_step() {
  ++num_steps_;
  std::vector<int64_t>& oldest = steps_[static_cast<size_t>(num_steps_) % steps_.size()];
  for (size_t e = 0; e < num_experts_; ++e) {
    window_[e] -= oldest[e];
    oldest[e] = 0;
  }
}

std::vector<int64_t> sum_over_ep_ranks(std::span<const int64_t> counts,
                                       const ParallelConfig& parallel, Communicator& world) {
  const auto length = static_cast<int64_t>(counts.size());
  const std::vector<int64_t> all =
      gather_counts(counts, parallel, world, [&](int) { return length; });
  std::vector<int64_t> sum(counts.size(), 0);
  for (size_t i = 0; i < all.size(); ++i)
    sum[i % counts.size()] += all[i];
  return sum;
}

std::vector<int64_t> gather_physical_counts(std::span<const int64_t> tokens_per_slot,
                                            const ExpertMap& experts,
                                            const ParallelConfig& parallel, Communicator& world) {
  const std::vector<int64_t> all =
      gather_counts(tokens_per_slot, parallel, world,
                    [&](int ep_rank) { return int64_t{experts.num_slots(ep_rank)}; });
  std::vector<int64_t> counts(all.size());
  const std::vector<int32_t> physical = experts.contiguous_to_physical();
  for (size_t i = 0; i < all.size(); ++i)
    counts[static_cast<size_t>(physical[i])] = all[i];
  return counts;
}

}  // namespace gantry
