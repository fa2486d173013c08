#pragma once

// From expert ids to rows sorted by expert: a stable counting sort in three launches, without
// atomics, so that the same input gives the same rows whatever the timing.
//
//   1 CountChoices   chunks of 256 choices: how many go to each slot
//   2 ScanCounts     one block: where each slot's rows begin, where each chunk's part of them; the
//                    list of token tiles
//   3 PlaceChoices   each choice to its row
//
// PlanBatch is all three in one block, for batches of one chunk: a launch is longer than their
// work.

#include <cstdint>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/host_device.h"
#include "kernels/cuda/launch_shape.h"

namespace gantry {

/// A tile of rows of one expert, the token side of a GEMM's tile.
struct TokenTile {
  int32_t slot;
  int32_t first_row;  ///< a multiple of 8
  int32_t num_rows;   ///< that hold a token, from first_row on
};

/// The rows of a batch on the device. Each slot's rows begin at a multiple of 8; what is between
/// the slots is padding (choice -1).
struct RowPlan {
  static constexpr int kChunk = 256;

  const int32_t* topk_ids;        ///< [C] expert ids, -1 for none
  const int32_t* expert_to_slot;  ///< [num_ids] or -1
  int64_t num_choices;            ///< C = T * K
  int32_t num_ids;                ///< ids from here on count as -1
  int32_t num_slots;              ///< L
  int32_t tile_rows;              ///< rows of a token tile, a multiple of 8
  int32_t* chunk_rows;            ///< [chunks + 2, L] counts, then sums of the chunks before;
                                  ///< behind them first rows of the slots, then all counts
  int32_t* choice_row;            ///< [C] row of each choice, or -1
  int32_t* row_choice;            ///< [max_rows(C, L)] choice of each row, or -1
  TokenTile* tiles;               ///< [max_tiles(C, L, tile_rows)]
  int32_t* totals;                ///< [2]: rows with padding, tiles

  [[nodiscard]] GANTRY_HD int64_t num_chunks() const {
    return ceil_div(num_choices, int64_t{kChunk});
  }

  /// [slots] after ScanCounts: choices of each slot.
  [[nodiscard]] GANTRY_HD const int32_t* counts(int64_t slots) const {
    return chunk_rows + (num_chunks() + 1) * slots;
  }
  /// Elements of chunk_rows.
  [[nodiscard]] static GANTRY_HD int64_t chunk_row_values(int64_t choices, int64_t slots) {
    return (ceil_div(choices, int64_t{kChunk}) + 2) * slots;
  }

  [[nodiscard]] GANTRY_HD int32_t slot_of(int64_t choice) const {
    const int32_t id = topk_ids[choice];
    return id < 0 || id >= num_ids ? -1 : expert_to_slot[id];
  }

  /// Rows with padding are at most this many: each slot that has rows adds at most 7.
  [[nodiscard]] static GANTRY_HD int64_t max_rows(int64_t choices, int64_t slots) {
    return align_to(choices + (kTokenTile - 1) * (slots < choices ? slots : choices), kTokenTile);
  }
  /// Tiles are at most this many: the last tile of a slot may hold a single row.
  [[nodiscard]] static GANTRY_HD int64_t max_tiles(int64_t choices, int64_t slots,
                                                   int64_t tile_rows) {
    const int64_t used = slots < choices ? slots : choices;
    return used + (choices - used) / tile_rows;
  }
};

/// The slots of a chunk's choices in shared memory; -1 behind the last choice.
template <class Machine>
GANTRY_DEVICE const int32_t* stage_chunk_slots(Machine& m, const RowPlan& plan) {
  auto* slots = reinterpret_cast<int32_t*>(m.shared());
  const int64_t choice = m.block() * RowPlan::kChunk + m.thread();
  slots[m.thread()] = choice < plan.num_choices ? plan.slot_of(choice) : -1;
  m.sync();
  return slots;
}

struct CountChoices {
  RowPlan plan;

  [[nodiscard]] LaunchShape launch_shape() const {
    return {plan.num_chunks(), RowPlan::kChunk, RowPlan::kChunk * 4};
  }

  // Each slot is counted by one thread, so no two write the same word.
  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int32_t* slots = stage_chunk_slots(m, plan);
    const int64_t left = plan.num_choices - m.block() * RowPlan::kChunk;
    const int used = left < RowPlan::kChunk ? static_cast<int>(left) : RowPlan::kChunk;
    for (int32_t s = m.thread(); s < plan.num_slots; s += m.num_threads()) {
      int32_t found = 0;
      for (int c = 0; c < used; ++c)
        found += slots[c] == s ? 1 : 0;
      plan.chunk_rows[m.block() * plan.num_slots + s] = found;
    }
  }
};

struct ScanCounts {
  static constexpr int kThreads = 256;

  RowPlan plan;

  /// Rows and tiles of the slots, twice: the scan goes from one copy to the other.
  [[nodiscard]] LaunchShape launch_shape() const {
    return {1, kThreads, 4 * int64_t{plan.num_slots} * 4};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int32_t num_slots = plan.num_slots;
    auto* rows = reinterpret_cast<int32_t*>(m.shared());
    auto* next = rows + 2 * num_slots;
    for (int32_t s = m.thread(); s < num_slots; s += kThreads) {
      const int32_t count = chunk_bases(s);
      rows[s] = static_cast<int32_t>(align_to(count, kTokenTile));
      rows[num_slots + s] = ceil_div(count, plan.tile_rows);
    }
    m.sync();
    for (int32_t step = 1; step < num_slots; step *= 2) {  // inclusive sums of both
      for (int32_t s = m.thread(); s < num_slots; s += kThreads) {
        for (int32_t i = s; i < 2 * num_slots; i += num_slots)
          next[i] = rows[i] + (s >= step ? rows[i - step] : 0);
      }
      m.sync();
      auto* const swapped = rows;
      rows = next;
      next = swapped;
    }
    for (int32_t s = m.thread(); s < num_slots; s += kThreads)
      place_slot(s, rows[s], rows[num_slots + s]);
    if (m.thread() == 0) {
      plan.totals[0] = num_slots > 0 ? rows[num_slots - 1] : 0;
      plan.totals[1] = num_slots > 0 ? rows[2 * num_slots - 1] : 0;
    }
  }

 private:
  static constexpr int kLoads = 16;  // in flight: one at a time, 4096 tokens take 0.1 ms

  // Turns the counts of a slot's chunks into sums of the chunks before; returns the slot's rows.
  GANTRY_DEVICE int32_t chunk_bases(int32_t slot) const {
    int32_t sum = 0;
    for (int64_t first = 0; first < plan.num_chunks(); first += kLoads) {
      int32_t counts[kLoads] = {};
      GANTRY_UNROLL
      for (int i = 0; i < kLoads; ++i)
        if (first + i < plan.num_chunks())
          counts[i] = plan.chunk_rows[(first + i) * plan.num_slots + slot];
      GANTRY_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        if (first + i < plan.num_chunks())
          plan.chunk_rows[(first + i) * plan.num_slots + slot] = sum;
        sum += counts[i];
      }
    }
    plan.chunk_rows[(plan.num_chunks() + 1) * plan.num_slots + slot] = sum;
    return sum;
  }

  // `row_end` and `tile_end` are the inclusive sums: rows with padding, and tiles.
  GANTRY_DEVICE void place_slot(int32_t slot, int32_t row_end, int32_t tile_end) const {
    const int32_t count = plan.counts(plan.num_slots)[slot];
    const auto padded = static_cast<int32_t>(align_to(count, kTokenTile));
    const int32_t first = row_end - padded;
    plan.chunk_rows[plan.num_chunks() * plan.num_slots + slot] = first;
    for (int32_t row = count; row < padded; ++row)
      plan.row_choice[first + row] = -1;
    int32_t tile = tile_end - ceil_div(count, plan.tile_rows);
    for (int32_t row = 0; row < count; row += plan.tile_rows) {
      const int32_t left = count - row;
      plan.tiles[tile++] = {slot, first + row, left < plan.tile_rows ? left : plan.tile_rows};
    }
  }
};

struct PlaceChoices {
  RowPlan plan;

  [[nodiscard]] LaunchShape launch_shape() const {
    return {plan.num_chunks(), RowPlan::kChunk, RowPlan::kChunk * 4};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int32_t* slots = stage_chunk_slots(m, plan);
    const int64_t choice = m.block() * RowPlan::kChunk + m.thread();
    if (choice >= plan.num_choices) return;
    const int32_t slot = slots[m.thread()];
    int32_t row = -1;
    if (slot >= 0) {
      row = plan.chunk_rows[plan.num_chunks() * plan.num_slots + slot] +
            plan.chunk_rows[m.block() * plan.num_slots + slot];
      for (int c = 0; c < m.thread(); ++c)
        row += slots[c] == slot ? 1 : 0;
      plan.row_choice[row] = static_cast<int32_t>(choice);
    }
    plan.choice_row[choice] = row;
  }
};

/// The three steps of a batch of at most one chunk. What one step leaves in memory the next one
/// reads: a block's barrier orders that, too.
struct PlanBatch {
  RowPlan plan;

  [[nodiscard]] static bool takes(const RowPlan& plan) { return plan.num_chunks() <= 1; }

  [[nodiscard]] LaunchShape launch_shape() const {
    const int64_t count = CountChoices{plan}.launch_shape().shared_bytes;
    const int64_t scan = ScanCounts{plan}.launch_shape().shared_bytes;
    return {1, RowPlan::kChunk, count > scan ? count : scan};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    if (plan.num_choices > 0) {
      CountChoices{plan}.run(m);
      m.sync();
    }
    ScanCounts{plan}.run(m);
    m.sync();
    PlaceChoices{plan}.run(m);
  }

  static_assert(ScanCounts::kThreads == RowPlan::kChunk);
};

}  // namespace gantry
