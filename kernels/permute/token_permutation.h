#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// The (token, choice) pairs of a batch that go to local experts, as rows sorted by expert slot.
///
/// Rows of one slot are in ascending token order (stable), so nothing depends on thread timing.
/// Capacity is kept between calls: `permute_tokens` allocates only when a batch is larger than any
/// before.
struct TokenPermutation {
  std::vector<int32_t> row_token;       // [M] token of each row
  std::vector<int32_t> row_choice;      // [M] flat index token * K + k into topk_ids
  std::vector<int32_t> expert_offsets;  // [L + 1] rows of slot s: [expert_offsets[s], [s + 1])

  [[nodiscard]] int64_t num_rows() const noexcept { return static_cast<int64_t>(row_token.size()); }
  /// Makes room, so that no permutation of this size allocates.
  void reserve(int64_t max_rows, int64_t num_slots);
};

/// Sorts the pairs of topk_ids by local slot.
///
/// Pairs whose id is -1, or whose expert has no slot here, get no row. A token may name the same
/// expert twice: it gets two rows.
///
/// @param topk_ids       [T, K] expert ids, -1 for none
/// @param expert_to_slot [E] local slot of each id, or -1
/// @param num_slots      L
/// @throws Error kInvalidArgument if an id is outside [-1, E) or a slot outside [-1, L)
void permute_tokens(std::span<const int32_t> topk_ids, int64_t num_tokens, int64_t top_k,
                    std::span<const int32_t> expert_to_slot, int64_t num_slots,
                    TokenPermutation& permutation);

}  // namespace gantry
