#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/expert_map.h"

namespace gantry GANTRY_API {

/// One expert's slot goes from one place to another. Ranks are EP ranks.
struct SlotMove {
  int32_t expert = 0;
  int32_t from_rank = 0;
  int32_t from_slot = 0;
  int32_t to_rank = 0;
  int32_t to_slot = 0;

  friend bool operator==(const SlotMove&, const SlotMove&) = default;
};

/// How the slots of one map become those of another, when old and new slots are separate memory.
struct MovePlan {
  std::vector<SlotMove> copies;  ///< from an old slot of the same rank
  /// Between ranks. Within a round each rank sends at most one slot and receives at most one.
  std::vector<std::vector<SlotMove>> rounds;
  std::vector<SlotMove> duplicates;  ///< from a *new* slot of the same rank, which was received

  [[nodiscard]] int64_t num_received() const noexcept;
};

/// Plans the least traffic: an expert crosses to a rank once, however many copies it gets there,
/// and only if that rank holds none. Of several holders each serves an equal share of those who
/// need the expert, the first ones one more. The same on every rank.
/// @throws Error kInvalidArgument if the maps differ in experts or ranks
MovePlan plan_moves(const ExpertMap& from, const ExpertMap& to);

}  // namespace gantry
