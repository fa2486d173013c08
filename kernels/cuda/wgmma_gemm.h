#pragma once

// The grouped GEMM of many tokens an expert on Hopper (sm_90a): one producer warp copies weights
// and rows to shared memory in bulk, two warpgroups multiply with wgmma.
//
// Weights are the A operand, from registers, so that every format is decoded on its way: the order
// of DeviceMatrix is that of wgmma's registers. Rows are the B operand, from shared memory, where
// they stand as in row_element: core matrices, no swizzle. Both are linear streams in memory, so
// TMA copies pieces of 512 to 2048 bytes and needs no tensor maps.
//
//   block: 128 outputs (64 a warpgroup) x 128 or 256 tokens; blocks stay and take tiles in turn
//   | barriers | sums on their way out | stages: weights, rows, scales, zero points, row scales |
//
// full[s] ends a phase when a stage has landed, empty[s] when all 8 warps are done with it.

#include "kernels/cuda/expert_gemm.h"
#include "kernels/cuda/wgmma_descriptor.h"

namespace gantry {

/// What becomes of scales.
enum class WgmmaMath : uint8_t {
  kPlain,     ///< weights of 16 bits: one sum over all of k
  kFolded,    ///< codes times their scales are exact in bf16 (e2m1 by e8m0 or e4m3): one sum
  kPromoted,  ///< a group's sum times its scales is added to f32 registers
  kRows8,     ///< e4m3 weights and rows, promoted every 128 k: wgmma's sums of e4m3 keep few bits
};

/// @tparam kColumns of 8 tokens, of a block: one width a kernel, as ptxas gives asynchronous
/// products
///         their registers by function. 16, or 32 where a single sum is kept.
template <DeviceElement kElement, WgmmaMath kMath, int kColumns>
struct WgmmaGemm {
  static constexpr bool kRows8 = kMath == WgmmaMath::kRows8;
  static constexpr bool kOneSum = kMath == WgmmaMath::kPlain || kMath == WgmmaMath::kFolded;
  static constexpr WgmmaType kType =
      kRows8 ? WgmmaType::kE4M3
             : (kElement == DeviceElement::kF16 ? WgmmaType::kF16 : WgmmaType::kBF16);
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr int kWeightTiles = 4 * kConsumers;
  static_assert(kColumns == 16 || (kColumns == 32 && kOneSum));
  static constexpr int kUnit = 64;  // k of the products between two waits
  static constexpr int kUnits = kMath == WgmmaMath::kPlain || kColumns == 32 ? 1 : 2;  // of a stage
  static constexpr int kDepth = kUnit * kUnits;
  static constexpr int kSteps = kUnit / wgmma_depth(kType);
  static constexpr int kMostStages = 6;
  static constexpr int kTileBytes = 16 * kDepth * bits_of(kElement) / 8;
  static constexpr int kColumnBytes = 8 * kDepth * (kRows8 ? 1 : 2);
  // Groups have 16 k or more; those of a stage are at most kDepth / 16, wherever they begin.
  static constexpr int kScaleBytes = kMath == WgmmaMath::kPlain ? 0 : kDepth / 16 * 16 * 4;
  static constexpr int kZeroBytes = kMath == WgmmaMath::kPromoted ? kDepth / 16 * 16 : 0;
  static constexpr int kRowScaleBytes = kRows8 ? kColumns * 8 * 4 : 0;
  static constexpr int kRowsAt = kWeightTiles * kTileBytes;
  static constexpr int kScalesAt = kRowsAt + kColumns * kColumnBytes;
  static constexpr int kZerosAt = kScalesAt + kWeightTiles * kScaleBytes;
  static constexpr int kRowScalesAt = kZerosAt + kWeightTiles * kZeroBytes;
  static constexpr int kStageBytes = kRowScalesAt + kRowScaleBytes;
  static constexpr int kPiece = 4;  // columns that leave the registers at a time
  static constexpr int kBarrierBytes = 128;
  static constexpr int kOutBytes = kPiece * 4 * kConsumerThreads * 4;
  static constexpr int kStagesAt = kBarrierBytes + kOutBytes;

  ExpertGemm gemm;
  int num_stages;

  /// Stages that fit; below 2 the kernel cannot run.
  [[nodiscard]] static int stages_in(int64_t shared_bytes) noexcept {
    const int64_t fit = (shared_bytes - kStagesAt) / kStageBytes;
    return static_cast<int>(fit > kMostStages ? int64_t{kMostStages} : fit);
  }
  /// @param num_sms a block fills an SM
  [[nodiscard]] LaunchShape launch_shape(int64_t num_sms) const {
    const int64_t items = gemm.max_tiles * ceil_div(gemm.matrix.num_tiles, int64_t{kWeightTiles});
    return {items < num_sms ? items : num_sms, kThreads,
            kStagesAt + int64_t{num_stages} * kStageBytes};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const Pipe pipe{reinterpret_cast<uint64_t*>(m.shared()), num_stages};
    if (m.thread() == 0) {
      for (int s = 0; s < num_stages; ++s) {
        m.init_barrier(pipe.full(s), 1);
        m.init_barrier(pipe.empty(s), 4 * kConsumers);
      }
      m.publish_barriers();
    }
    m.sync();
    const int64_t blocks = ceil_div(gemm.matrix.num_tiles, int64_t{kWeightTiles});
    const int64_t items = gemm.num_tiles(8 * kColumns) * blocks;
    Place place;
    if (m.thread() >= kConsumerThreads) {
      m.template fewer_registers<40>();
      if (m.thread() >= kConsumerThreads + 32) return;
      for (int64_t item = m.block(); item < items; item += m.num_blocks())
        produce(m, pipe, place, gemm.tile(item / blocks, 8 * kColumns),
                item % blocks * kWeightTiles);
    } else {
      m.template more_registers<232>();
      for (int64_t item = m.block(); item < items; item += m.num_blocks())
        consume(m, pipe, place, gemm.tile(item / blocks, 8 * kColumns),
                item % blocks * kWeightTiles);
    }
  }

 private:
  struct Pipe {
    uint64_t* barriers;
    int num_stages;
    [[nodiscard]] GANTRY_DEVICE uint64_t* full(int stage) const { return barriers + stage; }
    [[nodiscard]] GANTRY_DEVICE uint64_t* empty(int stage) const {
      return barriers + num_stages + stage;
    }
  };
  struct Place {
    int stage = 0;
    uint32_t phase = 0;
    GANTRY_DEVICE void advance(const Pipe& pipe) {
      if (++stage < pipe.num_stages) return;
      stage = 0;
      phase ^= 1u;
    }
  };

  template <class Machine>
  GANTRY_DEVICE std::byte* stage_of(Machine& m, int stage) const {
    return m.shared() + kStagesAt + stage * kStageBytes;
  }
  [[nodiscard]] GANTRY_DEVICE bool grouped() const {
    return kMath != WgmmaMath::kPlain && gemm.matrix.group > 0;
  }

  template <class Machine>
  GANTRY_DEVICE void produce(Machine& m, const Pipe& pipe, Place& place, const TokenTile& tokens,
                             int64_t first_tile) const {
    const auto depth = static_cast<int>(gemm.matrix.padded_k);
    for (int k = 0; k < depth; k += kDepth) {
      m.wait_barrier(pipe.empty(place.stage), place.phase ^ 1u);
      fill(m, pipe, place.stage, tokens, first_tile, k, depth - k < kDepth ? depth - k : kDepth);
      place.advance(pipe);
    }
  }

  // k .. k + depth of what exists of the block's tile. Tiles and columns that do not exist are left
  // as they are: nothing of their sums is stored.
  template <class Machine>
  GANTRY_DEVICE void fill(Machine& m, const Pipe& pipe, int stage, const TokenTile& tokens,
                          int64_t first_tile, int k, int depth) const {
    const DeviceMatrix& matrix = gemm.matrix;
    const int lane = m.thread() % 32;
    std::byte* target = stage_of(m, stage);
    uint64_t* full = pipe.full(stage);
    const int64_t left = matrix.num_tiles - first_tile;
    const int tiles = left < kWeightTiles ? static_cast<int>(left) : kWeightTiles;
    const int columns = ceil_div(tokens.num_rows, 8);
    const auto tile_bytes = static_cast<uint32_t>(kTileBytes / kDepth * depth);
    const auto column_bytes = static_cast<uint32_t>(kColumnBytes / kDepth * depth);
    const auto group = static_cast<int>(matrix.group);
    const int first_group = grouped() ? k / group : 0;
    const int groups = grouped() ? (k + depth - 1) / group - first_group + 1 : 0;
    const auto scale_bytes = static_cast<uint32_t>(groups * 16 * size_of_scale(matrix.scale));
    const auto zero_bytes =
        static_cast<uint32_t>(kZeroBytes > 0 && matrix.zero_points ? groups * 16 : 0);
    const auto row_scale_bytes = static_cast<uint32_t>(kRows8 ? columns * 32 : 0);
    if (lane == 0) {
      m.arrive_expecting(full, tiles * (tile_bytes + scale_bytes + zero_bytes) +
                                   columns * column_bytes + row_scale_bytes);
    }
    m.sync_warp();
    if (lane < tiles) {
      const std::byte* data = gemm.matrix_of(tokens.slot);
      const int64_t tile = first_tile + lane;
      m.copy_bulk(target + lane * kTileBytes,
                  data + matrix.chunk_offset(tile, k / chunk_depth(kElement), 0), tile_bytes, full);
      const int64_t scale = matrix.scale_index(tile, first_group, 0);
      if (scale_bytes > 0) {
        m.copy_bulk(target + kScalesAt + lane * kScaleBytes,
                    data + scale * size_of_scale(matrix.scale), scale_bytes, full);
      }
      if (zero_bytes > 0) {
        m.copy_bulk(target + kZerosAt + lane * kZeroBytes, data + matrix.zeros + scale, zero_bytes,
                    full);
      }
    }
    if (lane < columns) {
      const int64_t row = tokens.first_row + 8 * lane;
      const auto* rows =
          kRows8
              ? reinterpret_cast<const std::byte*>(gemm.x8 + row8_element(matrix.padded_k, row, k))
              : reinterpret_cast<const std::byte*>(gemm.x + row_element(matrix.padded_k, row, k));
      m.copy_bulk(target + kRowsAt + lane * kColumnBytes, rows, column_bytes, full);
    }
    if (kRows8 && lane == 31) {
      const int64_t g = gemm.x_groups > 1 ? k / kDepth : 0;
      m.copy_bulk(target + kRowScalesAt, gemm.x_scales + g * gemm.x_scale_stride + tokens.first_row,
                  row_scale_bytes, full);
    }
  }

  template <class Machine>
  GANTRY_DEVICE void consume(Machine& m, const Pipe& pipe, Place& place, const TokenTile& tokens,
                             int64_t first_tile) const {
    const int warp = m.thread() / 32;
    if (first_tile + warp >= gemm.matrix.num_tiles) {  // a whole warpgroup: tiles come in fours
      const auto depth = static_cast<int>(gemm.matrix.padded_k);
      for (int k = 0; k < depth; k += kDepth) {
        m.wait_barrier(pipe.full(place.stage), place.phase);
        release(m, pipe, place.stage);
        place.advance(pipe);
      }
    } else {
      compute(m, pipe, place, tokens, first_tile);
    }
  }

  template <class Machine>
  GANTRY_DEVICE void release(Machine& m, const Pipe& pipe, int stage) const {
    m.sync_warp();
    if (m.thread() % 32 == 0) m.arrive(pipe.empty(stage));
  }

  // Where a consumer stands in k.
  struct Progress {
    int k16 = 0;          // of the next step
    int group_left = 0;   // steps of 16 k to the end of the group
    int group = 0;        // that the next step belongs to
    int stage_group = 0;  // the first one whose scales are in the stage
    bool fresh = true;    // the next product begins a sum
  };

  static constexpr int kSums = kColumns * 4;
  static constexpr int kRowUnit = kRows8 ? 16 : 8;  // k of a core matrix

  template <class Machine>
  GANTRY_DEVICE void compute(Machine& m, const Pipe& pipe, Place& place, const TokenTile& tokens,
                             int64_t first_tile) const {
    const auto units = static_cast<int>(gemm.matrix.padded_k / kUnit);
    int group16 = grouped() ? static_cast<int>(gemm.matrix.group / 16) : units * 4;
    if (kRows8) group16 = kDepth / 16;
    float sums[kSums] = {};
    float partial[kOneSum ? 1 : kSums] = {};
    uint32_t a[2][kSteps][4] = {};
    Progress at;
    at.group_left = group16;
    int before = 0;  // the stage before this one
    for (int first = 0; first < units; first += 2) {
      GANTRY_UNROLL
      for (int p = 0; p < 2; ++p) {
        const int unit = first + p;
        if (unit >= units) continue;
        const bool new_stage = kUnits == 1 || p == 0;
        if (new_stage) {
          if (unit > 0) {
            before = place.stage;
            place.advance(pipe);
          }
          m.wait_barrier(pipe.full(place.stage), place.phase);
          at.stage_group = grouped() ? unit * kUnit / static_cast<int>(gemm.matrix.group) : 0;
        }
        const std::byte* stage = stage_of(m, place.stage);
        load_unit(m, stage, kUnits == 1 ? 0 : p, at, a[p]);
        const uint64_t rows = shared_matrix_descriptor(
            {m.shared_address(stage + kRowsAt) + (kUnits == 1 ? 0u : p * 128u * (kUnit / kRowUnit)),
             128, kColumnBytes, SharedSwizzle::kNone});
        if constexpr (kOneSum) {
          m.wgmma_fence();
          GANTRY_UNROLL
          for (int s = 0; s < kSteps; ++s)
            m.template wgmma<kType>(sums, a[p][s], advance_descriptor(rows, s * 256),
                                    !at.fresh || s > 0);
          m.wgmma_commit();
          at.fresh = false;
        } else {
          multiply_promoted(m, stage, rows, group16, a[p], at, partial, sums);
        }
        m.template wgmma_wait<kOneSum ? 1 : kSteps>();  // those of the unit before have landed
        if (new_stage && unit > 0) release(m, pipe, before);
      }
    }
    m.template wgmma_wait<0>();
    if constexpr (!kOneSum) {
      if (!at.fresh) promote(m, stage_of(m, place.stage), at, partial, sums);
    }
    release(m, pipe, place.stage);
    place.advance(pipe);
    finish(m, tokens, first_tile, sums);
  }

  // Products of a unit; wherever a group ends its sum is promoted.
  template <class Machine>
  GANTRY_DEVICE void multiply_promoted(Machine& m, const std::byte* stage, uint64_t rows,
                                       int group16, const uint32_t (&a)[kSteps][4], Progress& at,
                                       float (&partial)[kSums], float (&sums)[kSums]) const {
    GANTRY_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      m.wgmma_fence();  // on every path: ptxas puts one where it misses it, and serialises
      m.template wgmma<kType>(partial, a[s], advance_descriptor(rows, s * 256), !at.fresh);
      m.wgmma_commit();
      at.fresh = false;
      at.group_left -= wgmma_depth(kType) / 16;
      if (at.group_left > 0) continue;
      m.template wgmma_wait<0>();
      promote(m, stage, at, partial, sums);
      ++at.group;
      at.group_left = group16;
      at.fresh = true;
    }
  }

  template <class Machine>
  GANTRY_DEVICE void promote(Machine& m, const std::byte* stage, const Progress& at,
                             const float (&partial)[kSums], float (&sums)[kSums]) const {
    const int lane = m.thread() % 32;
    const float first = scale_at(m, stage, at, 0);
    const float second = scale_at(m, stage, at, 1);
    GANTRY_UNROLL
    for (int c = 0; c < kSums / 4; ++c) {
      float row_scales[2] = {1.0F, 1.0F};
      if constexpr (kRows8) {
        const auto* scales =
            reinterpret_cast<const float*>(stage + kRowScalesAt) + 8 * c + lane % 4 * 2;
        row_scales[0] = scales[0];
        row_scales[1] = scales[1];
      }
      GANTRY_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float scale = (e < 2 ? first : second) * (kRows8 ? row_scales[e % 2] : 1.0F);
        sums[4 * c + e] += partial[4 * c + e] * scale;
      }
    }
  }

  // The scale of one of the lane's two rows, of the group at hand.
  template <class Machine>
  GANTRY_DEVICE float scale_at(Machine& m, const std::byte* stage, const Progress& at,
                               int half) const {
    if (!grouped()) return 1.0F;
    const int row = m.thread() % 32 / 4 + 8 * half;
    return device_scale(stage + kScalesAt + m.thread() / 32 * kScaleBytes, gemm.matrix.scale,
                        (at.group - at.stage_group) * 16 + row);
  }

  // The A fragments of 64 k, decoded.
  template <class Machine>
  GANTRY_DEVICE void load_unit(Machine& m, const std::byte* stage, int unit, Progress& at,
                               uint32_t (&a)[kSteps][4]) const {
    using Chunk = decltype(Machine::load_stream(nullptr));
    constexpr int kChunks = kUnit / static_cast<int>(chunk_depth(kElement));
    const int lane = m.thread() % 32;
    const std::byte* own = stage + m.thread() / 32 * kTileBytes + unit * kChunks * 512 + lane * 16;
    GANTRY_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const Chunk codes = *reinterpret_cast<const Chunk*>(own + chunk * 512);
      if constexpr (kRows8) {
        join_steps(codes, a[chunk]);
      } else {
        constexpr int kChunkSteps = chunk_steps(kElement);
        GANTRY_UNROLL
        for (int step = 0; step < kChunkSteps; ++step)
          decode_step(m, stage, codes, step, at, a[chunk * kChunkSteps + step]);
      }
    }
  }

  // Two steps of mma.m16n8k16 are one of wgmma m64k32: registers of the same row side by side, k in
  // the order of row8_column.
  template <class Chunk>
  GANTRY_DEVICE static void join_steps(const Chunk& codes, uint32_t (&a)[4]) {
    GANTRY_UNROLL
    for (int step = 0; step < 2; ++step) {
      const uint32_t low = codes.words[2 * step];
      const uint32_t high = codes.words[2 * step + 1];
      a[2 * step] = (low & 0xffffu) | (high << 16);
      a[2 * step + 1] = (low >> 16) | (high & 0xffff0000u);
    }
  }

  template <class Machine, class Chunk>
  GANTRY_DEVICE void decode_step(Machine& m, const std::byte* stage, const Chunk& codes, int step,
                                 Progress& at, uint32_t (&a)[4]) const {
    const DeviceMatrix& matrix = gemm.matrix;
    decode_fragment<kElement, Machine>(codes, step, a);
    if constexpr (is_coded(kElement)) {
      const int group =
          grouped() ? at.k16 * 16 / static_cast<int>(matrix.group) - at.stage_group : 0;
      const int row = m.thread() % 32 / 4;
      const int warp = m.thread() / 32;
      GANTRY_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int index = group * 16 + row + 8 * half;
        if constexpr (kMath == WgmmaMath::kFolded) {
          const uint32_t scale = f32_to_bits(device_scale(stage + kScalesAt + warp * kScaleBytes,
                                                          matrix.scale, index)) >>
                                 16;
          a[half] = Machine::mul_bf16x2(a[half], scale | scale << 16);
          a[half + 2] = Machine::mul_bf16x2(a[half + 2], scale | scale << 16);
        } else if (matrix.zero_points) {
          const auto zero = static_cast<int8_t>(stage[kZerosAt + warp * kZeroBytes + index]);
          const uint32_t bits = f32_to_bf16_bits(static_cast<float>(zero));
          a[half] = Machine::sub_bf16x2(a[half], bits | bits << 16);
          a[half + 2] = Machine::sub_bf16x2(a[half + 2], bits | bits << 16);
        }
      }
    }
    ++at.k16;
  }

  // Each thread reads what it wrote: no barrier.
  template <class Machine>
  GANTRY_DEVICE void finish(Machine& m, const TokenTile& tokens, int64_t first_tile,
                            const float (&sums)[kSums]) const {
    const int lane = m.thread() % 32;
    const ExpertGemm::Outputs outputs =
        gemm.outputs_of(tokens.slot, first_tile + m.thread() / 32, lane);
    auto* own = reinterpret_cast<float*>(m.shared() + kBarrierBytes) + m.thread();
    GANTRY_UNROLL
    for (int piece = 0; piece < kColumns; piece += kPiece) {
      if (piece * 8 >= tokens.num_rows) continue;
      GANTRY_UNROLL
      for (int i = 0; i < 4 * kPiece; ++i)
        own[i * kConsumerThreads] = sums[4 * piece + i];
      GANTRY_NO_UNROLL
      for (int c = 0; c < kPiece; ++c) {
        if ((piece + c) * 8 >= tokens.num_rows) break;
        float values[4];
        GANTRY_UNROLL
        for (int e = 0; e < 4; ++e)
          values[e] = own[(4 * c + e) * kConsumerThreads];
        gemm.finish(tokens, outputs, piece + c, lane, values);
      }
    }
  }
};

}  // namespace gantry
