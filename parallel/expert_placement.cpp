#include "parallel/expert_placement.h"

#include <span>

#include "kernels/base/check.h"
#include "parallel/digest.h"

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

std::string ExpertPlacement::fingerprint() const {
  if (layers_.empty()) return std::string(to_string(strategy_));
  DigestBuilder digest;
  for (const auto& [layer, assignment] : layers_) {
    digest.add(int64_t{layer});
    digest.add(static_cast<int64_t>(assignment.kind));
    digest.add(static_cast<int64_t>(assignment.ids.size()));
    digest.add(std::as_bytes(std::span(assignment.ids)));
  }
  return fmt::format("{} layer(s) of a file, {}", layers_.size(), to_string(digest.digest()));
}

}  // namespace gantry
