#pragma once

// The grouped GEMM of few tokens an expert, for every GPU from sm_80 on. Weights go from memory to
// registers and into the tensor cores; nothing of them is used twice, so nothing is staged.
//
// A block computes one tile of 16 outputs for 8 * kColumns tokens. Its 4 warps take the chunks of k
// in turn (chunk c belongs to warp c % 4), and their sums are added in the order of the warps. The
// order of a sum depends on nothing but the matrix.

#include "kernels/cuda/expert_gemm.h"

namespace gantry {

/// @tparam kRowGroups rows are codes with a scale for 128 k (ExpertGemm::x_scales)
template <DeviceElement kElement, int kColumns, bool kRowGroups = false>
struct SkinnyGemm {
  static_assert(!kRowGroups || is_coded(kElement), "sums are promoted for coded weights only");
  static constexpr int kWarps = 4;
  /// Chunks that a warp has in flight while it multiplies as many others: 2 KB each way a warp.
  static constexpr int kPrefetch = 4;
  static constexpr int kTileRowsOfTokens = 8 * kColumns;

  ExpertGemm gemm;

  [[nodiscard]] static constexpr int64_t shared_bytes() noexcept {
    return int64_t{kWarps} * kColumns * 32 * 4 * 4;
  }
  /// @param most_blocks the blocks that the GPU holds at once; more would only wait
  [[nodiscard]] LaunchShape launch_shape(int64_t most_blocks) const {
    const int64_t items = gemm.max_tiles * gemm.matrix.num_tiles;
    return {items < most_blocks ? items : most_blocks, kWarps * 32, shared_bytes()};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int64_t items = gemm.num_tiles(kTileRowsOfTokens) * gemm.matrix.num_tiles;
    for (int64_t item = m.block(); item < items; item += m.num_blocks()) {
      const TokenTile tokens = gemm.tile(item / gemm.matrix.num_tiles, kTileRowsOfTokens);
      const int64_t weight_tile = item % gemm.matrix.num_tiles;
      float sums[kColumns][4] = {};
      multiply(m, tokens, weight_tile, sums);
      add_warps_and_finish(m, tokens, weight_tile, sums);
      m.sync();  // the next item writes the same shared memory
    }
  }

 private:
  template <class Machine>
  GANTRY_DEVICE void multiply(Machine& m, const TokenTile& tokens, int64_t weight_tile,
                              float (&sums)[kColumns][4]) const {
    using Chunk = decltype(Machine::load_stream(nullptr));
    const DeviceMatrix& matrix = gemm.matrix;
    const int lane = m.thread() % 32;
    const std::byte* data = gemm.matrix_of(tokens.slot);
    const auto chunks = static_cast<int>(matrix.num_chunks());
    const int first = m.thread() / 32;
    Chunk now[kPrefetch] = {};
    Chunk next[kPrefetch] = {};
    const auto load = [&](Chunk(&into)[kPrefetch], int chunk) {
      GANTRY_UNROLL
      for (int i = 0; i < kPrefetch; ++i) {
        if (chunk + i * kWarps < chunks)
          into[i] = Machine::load_stream(
              data + matrix.chunk_offset(weight_tile, chunk + i * kWarps, lane));
      }
    };
    load(now, first);
    for (int chunk = first; chunk < chunks; chunk += kPrefetch * kWarps) {
      load(next, chunk + kPrefetch * kWarps);
      GANTRY_UNROLL
      for (int i = 0; i < kPrefetch; ++i) {
        if (chunk + i * kWarps < chunks)
          multiply_chunk(m, tokens, weight_tile, data, chunk + i * kWarps, now[i], sums);
      }
      GANTRY_UNROLL
      for (int i = 0; i < kPrefetch; ++i)
        now[i] = next[i];
    }
  }

  template <class Machine, class Chunk>
  GANTRY_DEVICE void multiply_chunk(Machine& m, const TokenTile& tokens, int64_t weight_tile,
                                    const std::byte* data, int chunk, const Chunk& codes,
                                    float (&sums)[kColumns][4]) const {
    constexpr int kSteps = chunk_steps(kElement);
    const DeviceMatrix& matrix = gemm.matrix;
    const int lane = m.thread() % 32;
    const bool grouped = is_coded(kElement) && matrix.group > 0;
    GroupFactors factors;
    float partial[kColumns][4] = {};
    GANTRY_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int k16 = chunk * kSteps + step;
      const int group16 = grouped ? static_cast<int>(matrix.group / 16) : 1;
      if (grouped && (step == 0 || k16 % group16 == 0))
        factors = load_group(matrix, data, weight_tile, k16 / group16, lane);
      uint32_t a[4];
      load_fragment<kElement, Machine>(matrix, codes, step, factors, a);
      GANTRY_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        if (c * 8 >= tokens.num_rows) continue;
        // The two core matrices of this k, 64 words in a row: word `lane` of each.
        const auto* b = reinterpret_cast<const uint32_t*>(
            gemm.x + row_element(matrix.padded_k, tokens.first_row + 8 * c, 16 * k16));
        mma<kElement>(m, is_coded(kElement) ? partial[c] : sums[c], a, b[lane], b[32 + lane]);
      }
      const bool ends = step == kSteps - 1 || (grouped && (k16 + 1) % group16 == 0);
      if (!is_coded(kElement) || !ends) continue;
      if constexpr (kRowGroups) {
        add_scaled_rows(gemm, tokens, k16, 0, lane, factors, partial, sums);
      } else {
        add_scaled(factors, partial, sums);
      }
    }
  }

  // Warp w finishes columns w, w + 4, ...
  template <class Machine>
  GANTRY_DEVICE void add_warps_and_finish(Machine& m, const TokenTile& tokens, int64_t weight_tile,
                                          const float (&sums)[kColumns][4]) const {
    auto* all = reinterpret_cast<float*>(m.shared());  // [warps][columns][4][32]
    const int lane = m.thread() % 32;
    const int warp = m.thread() / 32;
    GANTRY_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      GANTRY_UNROLL
      for (int e = 0; e < 4; ++e)
        all[((warp * kColumns + c) * 4 + e) * 32 + lane] = sums[c][e];
    }
    m.sync();
    GANTRY_NO_UNROLL
    for (int c = warp; c < kColumns; c += kWarps) {
      if (c * 8 >= tokens.num_rows) continue;
      float total[4];
      GANTRY_UNROLL
      for (int e = 0; e < 4; ++e) {
        float sum = 0.0F;
        for (int w = 0; w < kWarps; ++w)
          sum += all[((w * kColumns + c) * 4 + e) * 32 + lane];
        total[e] = sum;
      }
      gemm.finish(tokens, gemm.outputs_of(tokens.slot, weight_tile, lane), c, lane, total);
    }
  }
};

}  // namespace gantry
