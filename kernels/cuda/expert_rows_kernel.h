#pragma once

// What surrounds the two GEMMs: rows in, rows out.

#include <cstdint>

#include "kernels/cuda/device_matrix.h"
#include "kernels/cuda/float_bits.h"
#include "kernels/cuda/host_device.h"
#include "kernels/cuda/launch_shape.h"

namespace gantry {

/// Writes the rows of w13's input in the order of `row_element`: rows[r] = x[token] *
/// scale[choice], rounded to bf16 or f16; zeros from k to padded_k and in rows without a token. One
/// thread for 8 elements.
struct GatherExpertRows {
  static constexpr int kThreads = 256;

  const float* x;                       ///< [T, k]
  const int32_t* row_choice = nullptr;  ///< [rows] of RowPlan; null: row r is token r
  const int32_t* totals = nullptr;      ///< RowPlan's; null: num_tokens rows
  const float* scale = nullptr;         ///< [C] or null for 1
  int64_t num_tokens;
  int64_t top_k;  ///< choices of a token
  int64_t k;
  int64_t padded_k;
  int64_t max_rows;  ///< rows that there is memory for, a multiple of 8
  bool f16;          ///< else bf16
  uint16_t* rows;

  [[nodiscard]] LaunchShape launch_shape() const {
    return {ceil_div(max_rows * (padded_k / 8), int64_t{kThreads}), kThreads, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    // Threads side by side write the 8 rows of a core matrix: 128 bytes.
    const int64_t unit = m.block() * kThreads + m.thread();
    const int64_t columns = padded_k / 8;
    const int64_t row = unit / (columns * 8) * 8 + unit % 8;
    const int64_t first = unit / 8 % columns * 8;
    const int64_t num_rows = totals == nullptr ? align_to(num_tokens, kTokenTile) : totals[0];
    if (row >= num_rows) return;
    int64_t token = row < num_tokens ? row : -1;
    float factor = 1.0F;
    if (row_choice != nullptr) {
      const int32_t choice = row_choice[row];
      token = choice < 0 ? -1 : choice / top_k;
      if (scale != nullptr && choice >= 0) factor = scale[choice];
    }
    uint32_t words[4] = {};
    for (int i = 0; i < 8; ++i) {
      const int64_t column = first + i;
      if (token < 0 || column >= k) continue;
      const float value = x[token * k + column] * factor;
      const uint32_t bits = f16 ? f32_to_f16_bits(value) : f32_to_bf16_bits(value);
      words[i / 2] |= bits << (i % 2 * 16);
    }
    auto* target = reinterpret_cast<uint32_t*>(rows + row_element(padded_k, row, first));
    for (int i = 0; i < 4; ++i)
      target[i] = words[i];
  }
};

/// out[t] = scale * (base[t] + sum over the token's rows of weight * y[row] + identity[t] * x[t]
///                   + gate[t] * shared[t]), f32, one thread an element.
///
/// Rows are added in ascending logical expert (`slot_rank`), then choice: one order whatever the
/// placement. Pointers may be null for what a layer does not have.
struct CombineRows {
  static constexpr int kThreads = 128;

  const float* base = nullptr;          ///< [T, n]
  const float* y = nullptr;             ///< [rows, n] of w2
  const int32_t* choice_row = nullptr;  ///< [T, top_k] of RowPlan
  const int32_t* topk_ids = nullptr;    ///< [T, top_k]
  const int32_t* id_rank = nullptr;     ///< [ids] place of an id in the order of summation
  const float* weights = nullptr;       ///< [T, top_k] or null for 1
  const float* identity = nullptr;      ///< [T]
  const float* x = nullptr;             ///< [T, n], with identity
  const float* shared = nullptr;        ///< [T, n]
  const float* gate = nullptr;          ///< [T] or null for 1
  float scale;
  int64_t num_tokens;
  int32_t top_k;
  int64_t n;
  float* out;  ///< [T, n]; may be base

  [[nodiscard]] LaunchShape launch_shape() const {
    return {num_tokens * ceil_div(n, int64_t{kThreads}), kThreads, int64_t{top_k} * 2 * 4};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int64_t blocks = ceil_div(n, int64_t{kThreads});
    const int64_t token = m.block() / blocks;
    const int64_t column = m.block() % blocks * kThreads + m.thread();
    auto* order = reinterpret_cast<int32_t*>(m.shared());  // choices, in the order of summation
    if (y != nullptr) {
      for (int32_t i = m.thread(); i < top_k; i += kThreads)
        order[place_of(token, i)] = i;
      m.sync();
    }
    if (column >= n) return;
    float sum = base == nullptr ? 0.0F : base[token * n + column];
    for (int32_t j = 0; y != nullptr && j < top_k; ++j) {
      const int64_t choice = token * top_k + order[j];
      const int32_t row = choice_row[choice];
      if (row < 0) continue;
      const float weight = weights == nullptr ? 1.0F : weights[choice];
      sum += weight * y[row * n + column];
    }
    if (identity != nullptr && identity[token] != 0.0F)
      sum += identity[token] * x[token * n + column];
    if (shared != nullptr) {
      const float factor = gate == nullptr ? 1.0F : gate[token];
      sum += factor * shared[token * n + column];
    }
    out[token * n + column] = sum * scale;
  }

 private:
  GANTRY_DEVICE int32_t rank_of(int64_t choice) const {
    return choice_row[choice] < 0 ? 0x7fffffff : id_rank[topk_ids[choice]];
  }
  GANTRY_DEVICE int32_t place_of(int64_t token, int32_t i) const {
    const int32_t own = rank_of(token * top_k + i);
    int32_t before = 0;
    for (int32_t j = 0; j < top_k; ++j) {
      const int32_t other = rank_of(token * top_k + j);
      before += other < own || (other == own && j < i) ? 1 : 0;
    }
    return before;
  }
};

}  // namespace gantry
