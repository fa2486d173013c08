#include "kernels/permute/token_permutation.h"

#include <numeric>

#include "kernels/base/check.h"

namespace gantry {

void permute_tokens(std::span<const int32_t> topk_ids, int64_t num_tokens, int64_t top_k,
                    std::span<const int32_t> expert_to_slot, int64_t num_slots,
                    TokenPermutation& permutation) {
  GANTRY_CHECK(
      num_tokens >= 0 && top_k >= 0 && topk_ids.size() == static_cast<size_t>(num_tokens * top_k),
      ErrorCode::kInvalidArgument, "permute_tokens: expected [{}, {}] ids, found {}", num_tokens,
      top_k, topk_ids.size());
  const auto num_experts = static_cast<int32_t>(expert_to_slot.size());
  const auto slot_of = [&](size_t choice) {
    const int32_t id = topk_ids[choice];
    return id < 0 ? -1 : expert_to_slot[static_cast<size_t>(id)];
  };
  permutation.expert_offsets.assign(static_cast<size_t>(num_slots) + 1, 0);
  for (size_t choice = 0; choice < topk_ids.size(); ++choice) {
    GANTRY_CHECK(topk_ids[choice] >= -1 && topk_ids[choice] < num_experts,
                 ErrorCode::kInvalidArgument,
                 "permute_tokens: token {}: expected an expert id from -1 to {}, found {}",
                 choice / static_cast<size_t>(top_k), num_experts - 1, topk_ids[choice]);
    const int32_t slot = slot_of(choice);
    GANTRY_CHECK(slot >= -1 && slot < num_slots, ErrorCode::kInvalidArgument,
                 "permute_tokens: expert {}: expected a slot from -1 to {}, found {}",
                 topk_ids[choice], num_slots - 1, slot);
    if (slot < 0) continue;
    ++permutation.expert_offsets[static_cast<size_t>(slot) + 1];
  }
  std::partial_sum(permutation.expert_offsets.begin(), permutation.expert_offsets.end(),
                   permutation.expert_offsets.begin());

  const auto num_rows = static_cast<size_t>(permutation.expert_offsets.back());
  permutation.row_token.resize(num_rows);
  permutation.row_choice.resize(num_rows);
  // Counting sort in token order: stable. The offsets serve as cursors and are moved back after.
  for (size_t choice = 0; choice < topk_ids.size(); ++choice) {
    const int32_t slot = slot_of(choice);
    if (slot < 0) continue;
    const auto row = static_cast<size_t>(permutation.expert_offsets[static_cast<size_t>(slot)]++);
    permutation.row_token[row] = static_cast<int32_t>(choice / static_cast<size_t>(top_k));
    permutation.row_choice[row] = static_cast<int32_t>(choice);
  }
  for (auto slot = static_cast<size_t>(num_slots); slot > 0; --slot)
    permutation.expert_offsets[slot] = permutation.expert_offsets[slot - 1];
  permutation.expert_offsets[0] = 0;
}

void TokenPermutation::reserve(int64_t max_rows, int64_t num_slots) {
  row_token.reserve(static_cast<size_t>(max_rows));
  row_choice.reserve(static_cast<size_t>(max_rows));
  expert_offsets.reserve(static_cast<size_t>(num_slots) + 1);
}

}  // namespace gantry
