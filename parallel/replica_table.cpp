#include "parallel/replica_table.h"

#include "kernels/base/check.h"

namespace gantry {

ReplicaTable::ReplicaTable(const ExpertMap& experts) {
  offsets_.push_back(0);
  for (int e = 0; e < experts.num_experts(); ++e) {
    const auto copies = experts.replicas(e);
    physical_.insert(physical_.end(), copies.begin(), copies.end());
    offsets_.push_back(static_cast<int32_t>(physical_.size()));
  }
}

void ReplicaTable::choose(std::span<const int32_t> topk_ids, int64_t top_k, int group,
                          std::span<int32_t> physical_ids) const {
  GANTRY_CHECK(physical_ids.size() == topk_ids.size() && top_k >= 1, ErrorCode::kInvalidArgument,
               "replica table: {} ids of top-{} into {}", topk_ids.size(), top_k,
               physical_ids.size());
  const auto num_experts = static_cast<int32_t>(offsets_.size()) - 1;
  for (size_t i = 0; i < topk_ids.size(); ++i) {
    const int32_t id = topk_ids[i];
    const auto token = static_cast<uint32_t>(i / static_cast<size_t>(top_k));
    GANTRY_CHECK(id >= -1 && id < num_experts, ErrorCode::kInvalidArgument,
                 "token {}: expected an expert id from -1 to {}, found {}", token, num_experts - 1,
                 id);
    if (id < 0) {
      physical_ids[i] = -1;
      continue;
    }
    const auto first = static_cast<uint32_t>(offsets_[static_cast<size_t>(id)]);
    const uint32_t copies = static_cast<uint32_t>(offsets_[static_cast<size_t>(id) + 1]) - first;
    const uint32_t hash = 2654435769U * (token + static_cast<uint32_t>(group));
    physical_ids[i] = physical_[first + hash % copies];
  }
}

}  // namespace gantry
