#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/expert_map.h"

namespace gantry GANTRY_API {

/// Which copy of an expert computes which token.
///
/// Copy number (2654435769 * (t + d)) mod 2^32 mod n of the expert's n copies, in ascending
/// physical id, where t is the token's index in its batch and d the index of its token group: known
/// to every rank without a word, and the same for all choices of a token. (vLLM's EPLB maps tokens
/// so, with d = 0; there the first tokens of all groups meet at the same copies.)
class ReplicaTable {
 public:
  ReplicaTable() = default;
  explicit ReplicaTable(const ExpertMap& experts);

  [[nodiscard]] bool empty() const noexcept { return physical_.empty(); }

  /// The physical ids of a batch; negative ids (no expert) stay.
  /// @param topk_ids [T, top_k] logical ids
  /// @param group    d above: the rank's dp_rank
  /// @param physical_ids [T, top_k], written
  /// @throws Error kInvalidArgument for an id below -1 or of no expert
  void choose(std::span<const int32_t> topk_ids, int64_t top_k, int group,
              std::span<int32_t> physical_ids) const;

 private:
  std::vector<int32_t> offsets_;   // [E + 1] into physical_
  std::vector<int32_t> physical_;  // [P] copies of expert 0, then of expert 1, ...
};

}  // namespace gantry
