#include "parallel/expert_placement.h"

#include "kernels/base/check.h"

namespace gantry {

ExpertMap ExpertPlacement::map_of(int layer, int num_experts, int ep_size) const {
  if (layers_.empty()) return ExpertMap::create(num_experts, ep_size, strategy_);
  const auto found = layers_.find(layer);
  GANTRY_CHECK(found != layers_.end(), ErrorCode::kInvalidArgument, "{}: no placement of layer {}",
               source_, layer);
  const LayerAssignment& assignment = found->second;
  try {
    if (assignment.kind == LayerAssignment::Kind::kPhysicalToLogical) {
      return ExpertMap::with_redundancy(num_experts, assignment.ids, ep_size, Placement::kLinear);
    }
    GANTRY_CHECK(assignment.ids.size() == static_cast<size_t>(num_experts),
                 ErrorCode::kInvalidArgument, "expected the ranks of {} experts, found {}",
                 num_experts, assignment.ids.size());
    std::vector<std::vector<int32_t>> slots(static_cast<size_t>(ep_size));
    for (int32_t expert = 0; expert < num_experts; ++expert) {
      const int32_t rank = assignment.ids[static_cast<size_t>(expert)];
      GANTRY_CHECK(rank >= 0 && rank < ep_size, ErrorCode::kInvalidArgument,
                   "expert {}: expected an EP rank below {}, found {}", expert, ep_size, rank);
      slots[static_cast<size_t>(rank)].push_back(expert);
    }
    return ExpertMap::from_slots(num_experts, std::move(slots));
  } catch (const Error& error) {
    fail(error.code(), "{}: layer {}: {}", source_, layer, error.what());
  }
}

std::string ExpertPlacement::describe() const {
  return layers_.empty() ? std::string(to_string(strategy_)) : source_;
}

}  // namespace gantry
