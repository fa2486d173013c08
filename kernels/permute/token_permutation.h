#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gantry {

/// The (token, choice) pairs of a batch that go to local experts, as rows sorted by expert slot.
///
/// Rows of one slot are in ascending token order (stable), so nothing depends on thread timing.
/// Capacity is kept between calls: `permute_tokens` allocates only when a batch is larger than any
/// before.
struct TokenPermutation {
  std::vector<int32_t> row_token;       // [M] token of each row
  std::vector<int32_t> row_choice;      // [M] flat index token * K + k into topk_ids
  std::vector<int32_t> expert_offsets;  // [L + 1] rows of slot s: [expert_offsets[s], [s + 1])
  std::vector<int32_t> token_rows;      // [M] rows grouped by token, ascending logical expert id
  std::vector<int32_t> token_offsets;   // [T + 1] of token t: token_rows[token_offsets[t] ...)

  [[nodiscard]] int64_t num_rows() const noexcept { return static_cast<int64_t>(row_token.size()); }
};

/// Sorts the pairs of topk_ids by local slot.
///
/// Pairs whose id is -1, or whose expert has no slot here, get no row. A token may name the same
/// expert twice: it gets two rows.
///
/// @param topk_ids       [T, K] logical expert ids, -1 for none
/// @param expert_to_slot [E] local slot of each logical expert, or -1
/// @param num_slots      L
/// @throws Error kInvalidArgument if an id is outside [-1, E) or a slot outside [-1, L)
void permute_tokens(std::span<const int32_t> topk_ids, int64_t num_tokens, int64_t top_k,
                    std::span<const int32_t> expert_to_slot, int64_t num_slots,
                    TokenPermutation& permutation);

/// Copies token rows into expert order: rows[r] = x[row_token[r]] * scale[r], in f32.
///
/// @param x     [T, H] f32
/// @param scale [T, K] f32 weights applied to the input (Llama 4), or empty for 1
/// @param rows  [M, H] f32, written; must not overlap x
void gather_rows(const TokenPermutation& permutation, std::span<const float> x, int64_t hidden_size,
                 std::span<const float> scale, std::span<float> rows) noexcept;

/// Adds weighted expert rows to their tokens: out[t] += sum of weight * rows[r] over the token's
/// rows in ascending logical expert id, in f32.
///
/// @param weights [T, K] f32, or empty for 1
/// @param out     [T, H] f32, read and written
void unpermute_and_reduce(const TokenPermutation& permutation, std::span<const float> rows,
                          int64_t hidden_size, std::span<const float> weights,
                          std::span<float> out) noexcept;

}  // namespace gantry
