#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// Which rank holds which expert, in which slot. A plain value: building one needs no
/// communication.
///
/// Logical experts are the E experts of the checkpoint. Physical experts are the P = E + R places
/// that hold a copy of one (R redundant copies). Each of the `ep_size` ranks owns a set of physical
/// experts; its slots 0..L-1 are those, in ascending physical id. Unless a map says otherwise
/// (from_slots), counts differ by at most one, and the first P % ep_size ranks hold one more.
class ExpertMap {
 public:
  /// Every expert once, without redundancy.
  /// @throws Error kInvalidArgument unless num_experts >= 1 and 1 <= ep_size
  static ExpertMap create(int num_experts, int ep_size, Placement placement);

  /// Any assignment: `physical_to_logical[p]` names the logical expert that physical expert p
  /// holds. Physical experts are dealt to ranks by `placement`. The initial map of vLLM's EPLB is
  /// 0..E-1, 0, 1, ..., R-1.
  /// @throws Error kInvalidArgument if an id is out of range or a logical expert has no copy
  static ExpertMap with_redundancy(int num_experts, std::vector<int32_t> physical_to_logical,
                                   int ep_size, Placement placement);

  /// Any assignment, said rank by rank: `slots[rank][j]` is the logical expert that slot j of a
  /// rank holds. Ranks may hold different numbers of slots, also none (ranks that leave, or have
  /// just joined). Physical experts are numbered rank by rank.
  /// @throws Error kInvalidArgument as with_redundancy does
  static ExpertMap from_slots(int num_experts, std::vector<std::vector<int32_t>> slots);

  /// The same slots on another number of ranks: ranks are added at the end without slots, or taken
  /// from the end.
  /// @throws Error kInvalidArgument if a rank that is taken away holds a slot
  [[nodiscard]] ExpertMap with_ep_size(int ep_size) const;

  [[nodiscard]] int num_experts() const noexcept { return num_experts_; }
  [[nodiscard]] int num_physical() const noexcept {
    return static_cast<int>(physical_to_logical_.size());
  }
  [[nodiscard]] int ep_size() const noexcept { return ep_size_; }
  [[nodiscard]] Placement placement() const noexcept { return placement_; }

  /// L of one rank; may be 0 when there are more ranks than experts.
  [[nodiscard]] int num_slots(int ep_rank) const;
  /// Logical expert of each slot of a rank.
  [[nodiscard]] std::span<const int32_t> slot_to_logical(int ep_rank) const;
  /// Slot of each logical expert on a rank, or -1: vLLM's `expert_map`. With several copies on one
  /// rank: the lowest slot.
  [[nodiscard]] std::span<const int32_t> logical_to_slot(int ep_rank) const;
  /// Every slot of a rank that holds a copy of `expert`, ascending.
  [[nodiscard]] std::vector<int32_t> slots_of(int ep_rank, int expert) const;
  /// The rank that holds physical expert p.
  [[nodiscard]] int owner(int physical) const;
  /// Slot of physical expert p on its owner.
  [[nodiscard]] int slot(int physical) const;
  [[nodiscard]] int logical(int physical) const;
  /// Logical expert of each physical one, [P].
  [[nodiscard]] std::span<const int32_t> physical_to_logical() const noexcept {
    return physical_to_logical_;
  }
  /// Whether some expert has more than one copy.
  [[nodiscard]] bool has_replicas() const noexcept { return num_physical() > num_experts_; }
  /// Physical experts that hold a copy of `expert`, ascending; never empty.
  [[nodiscard]] std::span<const int32_t> replicas(int expert) const;
  /// The lowest rank that computes `expert` when each rank sees all tokens: exactly one rank must
  /// add each expert's output, so of several copies only replica 0 counts.
  [[nodiscard]] int computing_rank(int expert) const;
  /// Like logical_to_slot, but -1 where another rank computes the expert.
  [[nodiscard]] std::vector<int32_t> computed_slots(int ep_rank) const;

  /// Routing tables of backends that number physical experts rank by rank (section 4.3 of vLLM's
  /// expert map manager): contiguous id of physical expert p, and back.
  [[nodiscard]] std::vector<int32_t> physical_to_contiguous() const;
  [[nodiscard]] std::vector<int32_t> contiguous_to_physical() const;

  /// The map as ranges, for logs: "rank 0: 0-42, rank 1: 43-85".
  [[nodiscard]] std::string describe() const;

  friend bool operator==(const ExpertMap&, const ExpertMap&) = default;

 private:
  /// Checks the assignment, then derives the tables; `physical_of[rank]` are the physical experts
  /// of a rank's slots.
  static ExpertMap build(int num_experts, std::vector<int32_t> physical_to_logical,
                         const std::vector<std::vector<int32_t>>& physical_of, Placement placement);
  [[nodiscard]] size_t physical_index(int physical) const;

  int num_experts_ = 0;
  int ep_size_ = 1;
  Placement placement_ = Placement::kLinear;
  std::vector<int32_t> physical_to_logical_;           // [P]
  std::vector<int32_t> owner_;                         // [P]
  std::vector<int32_t> slot_;                          // [P]
  std::vector<std::vector<int32_t>> slot_to_logical_;  // [ep_size][L]
  std::vector<std::vector<int32_t>> logical_to_slot_;  // [ep_size][E]
  std::vector<std::vector<int32_t>> replicas_;         // [E]
};

}  // namespace gantry
