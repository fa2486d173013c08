#pragma once

// The grouped GEMM of many tokens an expert, for every GPU from sm_80 on: a block of 8 warps
// computes 128 outputs for 128 tokens. Weights and rows both stand in memory in the order in which
// warps read them, so shared memory holds linear pieces of both: no swizzle, no bank conflicts.
//
//   stage: | weights of 8 tiles, k 64 | rows of 16 columns, k 64 |
//
// Stages are filled by cp.async; how many there are follows from the shared memory of the device
// (3 of bf16 fill the 99 KB of sm_86, sm_89 and sm_120).

#include "kernels/cuda/expert_gemm.h"

namespace gantry {

/// @tparam kRowGroups as SkinnyGemm's
template <DeviceElement kElement, bool kRowGroups = false>
struct TiledGemm {
  static_assert(!kRowGroups || is_coded(kElement));
  static constexpr int kColumns = 16;     // of 8 tokens, of the block
  static constexpr int kWeightTiles = 8;  // of the block
  static constexpr int kWarpColumns = 8;
  static constexpr int kWarpTiles = 2;
  static constexpr int kThreads = 256;
  static constexpr int kTileRowsOfTokens = 8 * kColumns;
  static constexpr int kDepth = 64;  // k of a stage
  static constexpr int kMostStages = 4;
  static constexpr int kWeightBytes = kWeightTiles * kTileRows * kDepth * bits_of(kElement) / 8;
  static constexpr int kRowBytes = kColumns * 8 * kDepth * 2;
  static constexpr int kStageBytes = kWeightBytes + kRowBytes;
  static constexpr int kSumsOfThread = kWarpTiles * kWarpColumns * 4;
  static constexpr int kSumBytes = kSumsOfThread * kThreads * 4;

  ExpertGemm gemm;
  int num_stages;

  /// Stages that fit, at least 2 and at most 4.
  [[nodiscard]] static int stages_in(int64_t shared_bytes) noexcept {
    const int64_t fit = shared_bytes / kStageBytes;
    return static_cast<int>(fit < 2 ? 2 : (fit > kMostStages ? int64_t{kMostStages} : fit));
  }
  [[nodiscard]] int64_t weight_blocks() const {
    return ceil_div(gemm.matrix.num_tiles, int64_t{kWeightTiles});
  }
  [[nodiscard]] LaunchShape launch_shape(int64_t most_blocks) const {
    const int64_t items = gemm.max_tiles * weight_blocks();
    const int64_t stages = int64_t{num_stages} * kStageBytes;
    return {items < most_blocks ? items : most_blocks, kThreads,
            stages > kSumBytes ? stages : int64_t{kSumBytes}};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int64_t blocks = ceil_div(gemm.matrix.num_tiles, int64_t{kWeightTiles});
    const int64_t items = gemm.num_tiles(kTileRowsOfTokens) * blocks;
    for (int64_t item = m.block(); item < items; item += m.num_blocks()) {
      const TokenTile tokens = gemm.tile(item / blocks, kTileRowsOfTokens);
      compute(m, tokens, item % blocks * kWeightTiles);
    }
  }

 private:
  // Which part of the block's tile a warp computes.
  struct Part {
    int lane;
    int first_tile;    // of the 8
    int first_column;  // of the 16
  };

  template <class Machine>
  GANTRY_DEVICE void compute(Machine& m, const TokenTile& tokens, int64_t first_tile) const {
    const int warp = m.thread() / 32;
    const Part part{m.thread() % 32, warp % 4 * kWarpTiles, warp / 4 * kWarpColumns};
    const auto steps = static_cast<int>(gemm.matrix.padded_k / kDepth);
    float sums[kWarpTiles][kWarpColumns][4] = {};
    for (int s = 0; s < num_stages - 1; ++s) {
      if (s < steps) fill(m, tokens, first_tile, s);
      m.commit_copies();
    }
    for (int s = 0; s < steps; ++s) {
      wait_for_oldest(m);
      m.sync();  // stage s is there for all, and all are done with the stage before it
      if (s + num_stages - 1 < steps) fill(m, tokens, first_tile, s + num_stages - 1);
      m.commit_copies();
      multiply(m, tokens, first_tile, part, s, sums);
    }
    m.sync();  // all are done with the stages
    finish(m, tokens, first_tile, part, sums);
    m.sync();  // the next tile's copies overwrite the sums
  }

  // By way of shared memory: a loop over registers would have to be unrolled, and
  // `ExpertGemm::finish` is long. Each thread reads what it wrote.
  template <class Machine>
  GANTRY_DEVICE void finish(Machine& m, const TokenTile& tokens, int64_t first_tile,
                            const Part& part,
                            const float (&sums)[kWarpTiles][kWarpColumns][4]) const {
    auto* own = reinterpret_cast<float*>(m.shared()) + m.thread();
    GANTRY_UNROLL
    for (int i = 0; i < kSumsOfThread; ++i)
      own[i * kThreads] = sums[i / (4 * kWarpColumns)][i / 4 % kWarpColumns][i % 4];
    GANTRY_NO_UNROLL
    for (int i = 0; i < kWarpTiles * kWarpColumns; ++i) {
      const int64_t weight_tile = first_tile + part.first_tile + i / kWarpColumns;
      const int column = part.first_column + i % kWarpColumns;
      if (weight_tile >= gemm.matrix.num_tiles || column * 8 >= tokens.num_rows) continue;
      float c[4];
      GANTRY_UNROLL
      for (int e = 0; e < 4; ++e)
        c[e] = own[(4 * i + e) * kThreads];
      gemm.finish(tokens, gemm.outputs_of(tokens.slot, weight_tile, part.lane), column, part.lane,
                  c);
    }
  }

  template <class Machine>
  GANTRY_DEVICE void wait_for_oldest(Machine& m) const {
    if (num_stages == 4) {
      m.wait_copies(2);
    } else if (num_stages == 3) {
      m.wait_copies(1);
    } else {
      m.wait_copies(0);
    }
  }

  // Copies k 64 s .. of weights and rows; tiles and columns that do not exist are left out, as
  // nothing of their sums is stored.
  template <class Machine>
  GANTRY_DEVICE void fill(Machine& m, const TokenTile& tokens, int64_t first_tile, int s) const {
    constexpr int kTileBytes = kWeightBytes / kWeightTiles;
    constexpr int64_t kChunks = kDepth / chunk_depth(kElement);
    const DeviceMatrix& matrix = gemm.matrix;
    std::byte* stage = m.shared() + s % num_stages * kStageBytes;
    const std::byte* data = gemm.matrix_of(tokens.slot);
    for (int unit = m.thread(); unit < kWeightBytes / 16; unit += kThreads) {
      const int tile = unit * 16 / kTileBytes;
      if (first_tile + tile >= matrix.num_tiles) continue;
      m.copy16_async(
          stage + unit * 16,
          data + matrix.chunk_offset(first_tile + tile, s * kChunks, 0) + unit * 16 % kTileBytes);
    }
    for (int unit = m.thread(); unit < kRowBytes / 16; unit += kThreads) {
      const int column = unit / kDepth;  // 8 rows x 64 k are 64 units
      if (column * 8 >= tokens.num_rows) continue;
      const uint16_t* rows =
          gemm.x + row_element(matrix.padded_k, tokens.first_row + 8 * column, int64_t{s} * kDepth);
      m.copy16_async(stage + kWeightBytes + unit * 16, rows + unit % kDepth * 8);
    }
  }

  template <class Machine>
  GANTRY_DEVICE void multiply(Machine& m, const TokenTile& tokens, int64_t first_tile,
                              const Part& part, int s,
                              float (&sums)[kWarpTiles][kWarpColumns][4]) const {
    using Chunk = decltype(Machine::load_stream(nullptr));
    constexpr int kSteps = chunk_steps(kElement);
    constexpr int kChunks = kDepth / 16 / kSteps;
    const DeviceMatrix& matrix = gemm.matrix;
    const std::byte* stage = m.shared() + s % num_stages * kStageBytes;
    const std::byte* data = gemm.matrix_of(tokens.slot);
    const bool grouped = is_coded(kElement) && matrix.group > 0;
    const int group16 = grouped ? static_cast<int>(matrix.group / 16) : 4;
    GANTRY_UNROLL
    for (int t = 0; t < kWarpTiles; ++t) {
      const int64_t weight_tile = first_tile + part.first_tile + t;
      if (weight_tile >= matrix.num_tiles) continue;  // whole warps
      GroupFactors factors;
      float partial[kWarpColumns][4] = {};
      GANTRY_UNROLL
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const Chunk codes = *reinterpret_cast<const Chunk*>(
            stage + (((part.first_tile + t) * kChunks + chunk) * 32 + part.lane) * 16);
        GANTRY_UNROLL
        for (int step = 0; step < kSteps; ++step) {
          const int in_stage = chunk * kSteps + step;  // of 4
          const int k16 = s * 4 + in_stage;
          if (grouped && (in_stage == 0 || k16 % group16 == 0))
            factors = load_group(matrix, data, weight_tile, k16 / group16, part.lane);
          uint32_t a[4];
          load_fragment<kElement, Machine>(matrix, codes, step, factors, a);
          GANTRY_UNROLL
          for (int c = 0; c < kWarpColumns; ++c) {
            if ((part.first_column + c) * 8 >= tokens.num_rows) continue;
            const auto* b = reinterpret_cast<const uint32_t*>(
                stage + kWeightBytes + ((part.first_column + c) * kDepth + in_stage * 16) * 16);
            mma<kElement>(m, is_coded(kElement) ? partial[c] : sums[t][c], a, b[part.lane],
                          b[32 + part.lane]);
          }
          const bool ends = in_stage == 3 || (grouped && (k16 + 1) % group16 == 0);
          if (!is_coded(kElement) || !ends) continue;
          if constexpr (kRowGroups) {
            add_scaled_rows(gemm, tokens, k16, part.first_column, part.lane, factors, partial,
                            sums[t]);
          } else {
            add_scaled(factors, partial, sums[t]);
          }
        }
      }
    }
  }
};

}  // namespace gantry
