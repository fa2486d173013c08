#pragma once

// Tokens that go to the ranks of their experts, and rows that come back: the lists of who gets
// what, and the copies by those lists. No atomics: every list is ascending, whatever the timing.
//
//   1 RankLists           which items (tokens, or single choices) each rank computes
//   2 GatherTokens        tokens of the lists side by side: what is sent, what this rank keeps
//   3 SumReturnedRows     rows that ranks computed for this rank's tokens, added in rank order
//   4 GatherChoiceRows    or one row a choice, in the order of choices

#include <cstdint>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/host_device.h"
#include "kernels/cuda/launch_shape.h"

namespace gantry {

/// The EP rank that computes an expert id, for kernels.
struct IdRanks {
  const int32_t* rank;  ///< [num_ids]
  int32_t num_ids;      ///< ids outside [0, num_ids) count as none

  [[nodiscard]] GANTRY_HD int32_t of(int32_t id) const {
    return id < 0 || id >= num_ids ? -1 : rank[id];
  }
};

/// Lists of the items that one of `top_k` choices brings to an EP rank, ascending. Two kinds of
/// lists in one launch, a block each:
///
///   0 .. num_ranks - 1   items [first, first + count) for EP rank = number of the list
///   then num_parts       each an even part of [0, tokens) times `per_token` items, for own_rank
struct RankLists {
  static constexpr int kThreads = 256;
  static constexpr int32_t kAbsent = -1;  ///< of `rows`: the item is not in the list
  static constexpr int32_t kNoRoom = -2;  ///< it is behind the last row that there is room for

  const int32_t* topk_ids = nullptr;  ///< [items, top_k]
  IdRanks ids{};
  int32_t top_k = 1;
  int64_t first = 0;
  int64_t count = 0;
  int32_t num_ranks = 0;
  int64_t tokens = 0;
  int64_t per_token = 1;
  int32_t num_parts = 0;
  int32_t own_rank = 0;
  int32_t always_rank = -1;  ///< this EP rank takes every item, and has room for it; -1: none
  /// Rows of a list at most; lists are filled up to that (or all of their items) with -1. Negative:
  /// as many as there are, and nothing is filled up.
  int64_t room = -1;
  int64_t stride = 0;         ///< between lists, in entries: at least the items of any
  int32_t* lists = nullptr;   ///< [num_ranks + num_parts, stride]
  int32_t* rows = nullptr;    ///< [num_ranks, stride] place of item first + i in each list, or null
  int32_t* counts = nullptr;  ///< [num_ranks + num_parts] entries, also those that fill up
  int32_t* lost = nullptr;    ///< [num_ranks] items that there was no room for, or null

  [[nodiscard]] LaunchShape launch_shape() const {
    return {int64_t{num_ranks} + num_parts, kThreads, 2 * kThreads * 4};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const auto list = static_cast<int32_t>(m.block());
    const bool for_all = list < num_ranks;
    const int32_t rank = for_all ? list : own_rank;
    const int64_t begin = for_all ? first : part_begin(list - num_ranks);
    const int64_t items = for_all ? count : part_begin(list - num_ranks + 1) - begin;
    const bool cut = room >= 0 && rank != always_rank && room < items;
    const int64_t most = cut ? room : items;

    // Each thread has a run of items: counted first, then placed behind those of the threads below.
    const int64_t length = ceil_div(items, int64_t{kThreads});
    const int64_t run_begin = least(m.thread() * length, items);
    const int64_t run_end = least(run_begin + length, items);
    int32_t found = 0;
    for (int64_t i = run_begin; i < run_end; ++i)
      found += takes(begin + i, rank) ? 1 : 0;
    const int32_t* sums = scan(m, found);
    const int32_t total = sums[kThreads - 1];
    int32_t row = sums[m.thread()] - found;
    int32_t* const own_list = lists + list * stride;
    for (int64_t i = run_begin; i < run_end; ++i) {
      const bool taken = takes(begin + i, rank);
      const bool fits = taken && row < most;
      if (for_all && rows != nullptr)
        rows[list * stride + i] = fits ? row : (taken ? kNoRoom : kAbsent);
      if (fits) own_list[row] = static_cast<int32_t>(begin + i);
      row += taken ? 1 : 0;
    }
    const int64_t filled = room >= 0 ? most : total;
    for (int64_t i = total + m.thread(); i < filled; i += kThreads)
      own_list[i] = -1;
    if (m.thread() != 0) return;
    counts[list] = static_cast<int32_t>(filled);
    if (for_all && lost != nullptr)
      lost[list] = total > most ? total - static_cast<int32_t>(most) : 0;
  }

 private:
  static GANTRY_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // Where a part begins, in items: those of split_evenly (parallel_config.h).
  [[nodiscard]] GANTRY_HD int64_t part_begin(int64_t part) const {
    const int64_t rest = tokens % num_parts;
    return (part * (tokens / num_parts) + least(part, rest)) * per_token;
  }

  [[nodiscard]] GANTRY_DEVICE bool takes(int64_t item, int32_t rank) const {
    if (rank == always_rank) return true;
    for (int64_t choice = item * top_k; choice < (item + 1) * top_k; ++choice)
      if (ids.of(topk_ids[choice]) == rank) return true;
    return false;
  }

  // Inclusive sums over the threads.
  template <class Machine>
  static GANTRY_DEVICE const int32_t* scan(Machine& m, int32_t own) {
    auto* sums = reinterpret_cast<int32_t*>(m.shared());
    auto* next = sums + kThreads;
    sums[m.thread()] = own;
    m.sync();
    for (int step = 1; step < kThreads; step *= 2) {
      next[m.thread()] = sums[m.thread()] + (m.thread() >= step ? sums[m.thread() - step] : 0);
      m.sync();
      auto* const swapped = sums;
      sums = next;
      next = swapped;
    }
    return sums;
  }
};

/// Copies the tokens of lists of RankLists: hidden states, ids (those that the list's EP rank
/// computes, else -1), weights. An entry of -1 becomes zeros without ids. A block a row.
struct GatherTokens {
  static constexpr int kThreads = 128;

  const float* x = nullptr;           ///< [T, n]
  const int32_t* topk_ids = nullptr;  ///< [T, top_k]
  const float* topk_weights = nullptr;
  IdRanks ids{};
  const int32_t* lists = nullptr;  ///< [num_lists, stride]
  const int32_t* counts = nullptr;
  int32_t num_lists = 0;
  int64_t stride = 0;
  /// True: every list is for `rank`, and their rows follow each other. False: list i is for EP rank
  /// i, and its rows begin at i * stride.
  bool packed = false;
  int32_t rank = 0;
  int32_t top_k = 1;
  int64_t n = 0;
  float* out_x = nullptr;
  int32_t* out_ids = nullptr;
  float* out_weights = nullptr;

  [[nodiscard]] LaunchShape launch_shape() const { return {num_lists * stride, kThreads, 0}; }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const auto list = static_cast<int32_t>(m.block() / stride);
    const int64_t place = m.block() % stride;
    if (place >= counts[list]) return;
    int64_t row = place;
    if (packed) {
      for (int32_t before = 0; before < list; ++before)
        row += counts[before];
    } else {
      row += list * stride;
    }
    const int64_t token = lists[list * stride + place];
    for (int64_t i = m.thread(); i < n; i += kThreads)
      out_x[row * n + i] = token < 0 ? 0.0F : x[token * n + i];
    for (int32_t i = m.thread(); i < top_k; i += kThreads) {
      const int32_t id = token < 0 ? -1 : topk_ids[token * top_k + i];
      const bool computed = ids.of(id) == (packed ? rank : list);
      out_ids[row * top_k + i] = id >= 0 && computed ? id : -1;
      out_weights[row * top_k + i] = token < 0 ? 0.0F : topk_weights[token * top_k + i];
    }
  }
};

/// out[t] = the rows of token t, from +0 in rank order, + bias; one thread an element. A token for
/// which a list had no room becomes NaN.
struct SumReturnedRows {
  static constexpr int kThreads = 128;

  const float* returned = nullptr;  ///< [ep_size * tp_size, stride, n], by rank
  const int32_t* rows = nullptr;    ///< [ep_size, stride] of RankLists
  const float* bias = nullptr;      ///< [n] or null
  int32_t ep_size = 1;
  int32_t tp_size = 1;
  int64_t stride = 0;
  int64_t num_tokens = 0;
  int64_t n = 0;
  float* out = nullptr;  ///< [T, n]

  [[nodiscard]] LaunchShape launch_shape() const {
    return {num_tokens * ceil_div(n, int64_t{kThreads}), kThreads, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int64_t blocks = ceil_div(n, int64_t{kThreads});
    const int64_t token = m.block() / blocks;
    const int64_t column = m.block() % blocks * kThreads + m.thread();
    if (column >= n) return;
    float sum = 0.0F;
    for (int32_t ep_rank = 0; ep_rank < ep_size; ++ep_rank) {
      const int32_t row = rows[ep_rank * stride + token];
      if (row == RankLists::kNoRoom) sum = bits_to_f32(0x7fc00000U);
      if (row < 0) continue;
      for (int32_t tp_rank = 0; tp_rank < tp_size; ++tp_rank) {
        const int64_t rank = int64_t{ep_rank} * tp_size + tp_rank;
        sum += returned[(rank * stride + row) * n + column];
      }
    }
    if (bias != nullptr) sum += bias[column];
    out[token * n + column] = sum;
  }
};

/// out[r] = y[choice_row[list[r]]]; one thread an element.
struct GatherChoiceRows {
  static constexpr int kThreads = 128;

  const float* y = nullptr;             ///< [rows, n] of w2
  const int32_t* choice_row = nullptr;  ///< of RowPlan
  const int32_t* list = nullptr;        ///< choices
  int64_t num_rows = 0;
  int64_t n = 0;
  float* out = nullptr;

  [[nodiscard]] LaunchShape launch_shape() const {
    return {num_rows * ceil_div(n, int64_t{kThreads}), kThreads, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int64_t blocks = ceil_div(n, int64_t{kThreads});
    const int64_t row = m.block() / blocks;
    const int64_t column = m.block() % blocks * kThreads + m.thread();
    if (column >= n) return;
    out[row * n + column] = y[int64_t{choice_row[list[row]]} * n + column];
  }
};

}  // namespace gantry
