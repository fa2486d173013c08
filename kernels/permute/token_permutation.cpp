#include "kernels/permute/token_permutation.h"

#include <algorithm>
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
  permutation.token_offsets.assign(static_cast<size_t>(num_tokens) + 1, 0);
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
    ++permutation.token_offsets[choice / static_cast<size_t>(top_k) + 1];
  }
  std::partial_sum(permutation.expert_offsets.begin(), permutation.expert_offsets.end(),
                   permutation.expert_offsets.begin());
  std::partial_sum(permutation.token_offsets.begin(), permutation.token_offsets.end(),
                   permutation.token_offsets.begin());

  const auto num_rows = static_cast<size_t>(permutation.expert_offsets.back());
  permutation.row_token.resize(num_rows);
  permutation.row_choice.resize(num_rows);
  permutation.token_rows.resize(num_rows);
  // Counting sort in token order: stable. The offsets serve as cursors and are moved back after.
  for (size_t choice = 0; choice < topk_ids.size(); ++choice) {
    const int32_t slot = slot_of(choice);
    if (slot < 0) continue;
    const auto row = static_cast<size_t>(permutation.expert_offsets[static_cast<size_t>(slot)]++);
    const size_t token = choice / static_cast<size_t>(top_k);
    permutation.row_token[row] = static_cast<int32_t>(token);
    permutation.row_choice[row] = static_cast<int32_t>(choice);
    const auto place = static_cast<size_t>(permutation.token_offsets[token]++);
    permutation.token_rows[place] = static_cast<int32_t>(row);
  }
  const auto move_back = [](std::vector<int32_t>& offsets) {
    for (size_t i = offsets.size() - 1; i > 0; --i)
      offsets[i] = offsets[i - 1];
    offsets[0] = 0;
  };
  move_back(permutation.expert_offsets);
  move_back(permutation.token_offsets);
  // The order in which a token's outputs are added: ascending logical id, then choice.
  for (size_t token = 0; token < static_cast<size_t>(num_tokens); ++token) {
    const auto begin = permutation.token_rows.begin() + permutation.token_offsets[token];
    const auto end = permutation.token_rows.begin() + permutation.token_offsets[token + 1];
    std::sort(begin, end, [&](int32_t a, int32_t b) {
      const auto choice_a = static_cast<size_t>(permutation.row_choice[static_cast<size_t>(a)]);
      const auto choice_b = static_cast<size_t>(permutation.row_choice[static_cast<size_t>(b)]);
      return std::pair(topk_ids[choice_a], choice_a) < std::pair(topk_ids[choice_b], choice_b);
    });
  }
}

void gather_rows(const TokenPermutation& permutation, std::span<const float> x, int64_t hidden_size,
                 std::span<const float> scale, std::span<float> rows) noexcept {
  for (int64_t row = 0; row < permutation.num_rows(); ++row) {
    const auto index = static_cast<size_t>(row);
    const float* source = x.data() + permutation.row_token[index] * hidden_size;
    float* target = rows.data() + row * hidden_size;
    if (scale.empty()) {
      std::copy_n(source, hidden_size, target);
      continue;
    }
    const float factor = scale[static_cast<size_t>(permutation.row_choice[index])];
    for (int64_t i = 0; i < hidden_size; ++i)
      target[i] = source[i] * factor;
  }
}

void unpermute_and_reduce(const TokenPermutation& permutation, std::span<const float> rows,
                          int64_t hidden_size, std::span<const float> weights,
                          std::span<float> out) noexcept {
  const auto num_tokens = static_cast<int64_t>(permutation.token_offsets.size()) - 1;
  for (int64_t token = 0; token < num_tokens; ++token) {
    float* target = out.data() + token * hidden_size;
    const auto begin = static_cast<size_t>(permutation.token_offsets[static_cast<size_t>(token)]);
    const auto end = static_cast<size_t>(permutation.token_offsets[static_cast<size_t>(token) + 1]);
    for (size_t i = begin; i < end; ++i) {
      const auto row = static_cast<size_t>(permutation.token_rows[i]);
      const float weight =
          weights.empty() ? 1.0F : weights[static_cast<size_t>(permutation.row_choice[row])];
      const float* source = rows.data() + static_cast<int64_t>(row) * hidden_size;
      for (int64_t h = 0; h < hidden_size; ++h)
        target[h] += weight * source[h];
    }
  }
}

}  // namespace gantry
