#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel/expert_map.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

/// Any expert map: 0 to E redundant copies of random experts, dealt evenly or not, also to ranks
/// without a slot.
inline ExpertMap random_map(int num_experts, int ep_size, SeededRng& rng) {
  std::vector<int32_t> logical;
  for (int e = 0; e < num_experts; ++e)
    logical.push_back(e);
  for (int64_t r = rng.integer(0, num_experts); r > 0; --r)
    logical.push_back(static_cast<int32_t>(rng.integer(0, num_experts - 1)));
  std::shuffle(logical.begin(), logical.end(), rng.engine());
  const int64_t kind = rng.integer(0, 3);
  if (kind < 2) {
    return ExpertMap::with_redundancy(num_experts, std::move(logical), ep_size,
                                      kind == 0 ? Placement::kLinear : Placement::kRoundRobin);
  }
  // Some ranks are left out.
  const int64_t first = kind == 2 ? 0 : rng.integer(0, ep_size - 1);
  const int64_t last = rng.integer(first, ep_size - 1);
  std::vector<std::vector<int32_t>> slots(static_cast<size_t>(ep_size));
  for (const int32_t expert : logical)
    slots[static_cast<size_t>(rng.integer(first, last))].push_back(expert);
  return ExpertMap::from_slots(num_experts, std::move(slots));
}

}  // namespace gantry::test
