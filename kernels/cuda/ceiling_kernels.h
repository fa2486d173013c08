#pragma once

// What a GPU does at most, as kernels: other figures are read as a part of theirs.

#include <cstdint>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/launch_shape.h"
#include "kernels/cuda/wgmma_descriptor.h"

namespace gantry {

/// Reads memory once and in order, as weights are read. What it read is stored nowhere, which the
/// compiler cannot know.
struct ReadMemory {
  static constexpr int kThreads = 256;
  static constexpr int kLoads = 8;  // of 16 bytes that a thread has in flight

  const std::byte* data;
  int64_t bytes;  ///< a multiple of 16
  int64_t blocks;
  uint32_t* sink;  ///< one word; written if the xor of all words is `never`
  uint32_t never;

  [[nodiscard]] LaunchShape launch_shape() const { return {blocks, kThreads, 0}; }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    using Chunk = decltype(Machine::load_stream(nullptr));
    const int64_t step = m.num_blocks() * kThreads;
    const int64_t count = bytes / 16;
    uint32_t mixed = 0;
    for (int64_t first = m.block() * kThreads + m.thread(); first < count; first += step * kLoads) {
      Chunk chunks[kLoads] = {};
      GANTRY_UNROLL
      for (int i = 0; i < kLoads; ++i) {
        if (first + i * step < count)
          chunks[i] = Machine::load_stream(data + (first + i * step) * 16);
      }
      GANTRY_UNROLL
      for (int i = 0; i < kLoads; ++i)
        mixed ^= chunks[i].words[0] ^ chunks[i].words[1] ^ chunks[i].words[2] ^ chunks[i].words[3];
    }
    if (mixed == never) *sink = mixed;
  }
};

/// Products of mma.m16n8k16 of registers: bf16.
struct MmaPeak {
  static constexpr int kThreads = 256;
  static constexpr int kSums = 8;  // independent ones, so that none waits for another

  int64_t blocks;
  int rounds;
  float* sink;  ///< [blocks * threads], written

  [[nodiscard]] LaunchShape launch_shape() const { return {blocks, kThreads, 0}; }
  [[nodiscard]] double flops() const {
    return static_cast<double>(blocks) * (kThreads / 32) * rounds * kSums * 2.0 * 16 * 8 * 16;
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const uint32_t a[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    float sums[kSums][4] = {};
    GANTRY_NO_UNROLL
    for (int round = 0; round < rounds; ++round) {
      GANTRY_UNROLL
      for (int i = 0; i < kSums; ++i)
        m.mma_bf16(sums[i], a, 0x3f803f80u, 0x3f803f80u);
    }
    float total = 0.0F;
    GANTRY_UNROLL
    for (int i = 0; i < kSums; ++i)
      total += sums[i][0];
    sink[m.block() * kThreads + m.thread()] = total;
  }
};

/// Products of wgmma m64n256: A from registers, B from shared memory, as WgmmaGemm's.
template <WgmmaType kType>
struct WgmmaPeak {
  static constexpr int kThreads = 256;
  static constexpr int kSteps = 4;  // products of a group

  int64_t blocks;
  int rounds;
  float* sink;  ///< [blocks * threads], written

  [[nodiscard]] LaunchShape launch_shape() const {
    return {blocks, kThreads, int64_t{256} * 32 * kSteps};
  }
  [[nodiscard]] double flops() const {
    return static_cast<double>(blocks) * (kThreads / 128) * rounds * kSteps * 2.0 * 64 * 256 *
           wgmma_depth(kType);
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    auto* words = reinterpret_cast<uint32_t*>(m.shared());
    for (int i = m.thread(); i < 256 * 8 * kSteps; i += kThreads)
      words[i] = 0;
    m.publish_shared();
    m.sync();
    const uint32_t a[4] = {};
    float sums[128] = {};
    const uint64_t rows = shared_matrix_descriptor(
        {m.shared_address(m.shared()), 128, 256 * kSteps, SharedSwizzle::kNone});
    GANTRY_NO_UNROLL
    for (int round = 0; round < rounds; ++round) {
      m.wgmma_fence();
      GANTRY_UNROLL
      for (int s = 0; s < kSteps; ++s)
        m.template wgmma<kType>(sums, a, advance_descriptor(rows, static_cast<uint32_t>(s) * 256),
                                true);
      m.wgmma_commit();
      m.template wgmma_wait<1>();
    }
    m.template wgmma_wait<0>();
    sink[m.block() * kThreads + m.thread()] = sums[0];
  }
};

}  // namespace gantry
