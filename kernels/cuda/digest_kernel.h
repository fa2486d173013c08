#pragma once

#include <cstdint>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/launch_shape.h"

namespace gantry {

/// 128 bits of the bytes of a range, against accidents on their way: the sums of two mixes of every
/// 64-bit word with its place. Sums, so that no order matters; a mix is one-to-one in its word, so
/// one changed word always shows. The host adds the sums of the blocks.
/// @source the mix is that of splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
///         generators", 2014
struct DigestWords {
  static constexpr int kThreads = 256;
  static constexpr int kMaxBlocks = 256;

  const uint64_t* words;  ///< [num_words]
  int64_t num_words;
  uint64_t* sums;  ///< [blocks, 2], written

  [[nodiscard]] LaunchShape launch_shape() const {
    const int64_t blocks = ceil_div(num_words, int64_t{kThreads});
    return {blocks < kMaxBlocks ? blocks : kMaxBlocks, kThreads, kThreads * 2 * 8};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    uint64_t low = 0;
    uint64_t high = 0;
    const int64_t step = m.num_blocks() * kThreads;
    for (int64_t i = m.block() * kThreads + m.thread(); i < num_words; i += step) {
      const auto place = static_cast<uint64_t>(i) + 1;
      low += mix(words[i] + place * 0x9e3779b97f4a7c15U);
      high += mix(words[i] ^ (place * 0xd1b54a32d192ed03U));
    }
    auto* const shared = reinterpret_cast<uint64_t*>(m.shared());
    shared[m.thread()] = low;
    shared[kThreads + m.thread()] = high;
    for (int half = kThreads / 2; half > 0; half /= 2) {
      m.sync();
      if (m.thread() >= half) continue;
      shared[m.thread()] += shared[m.thread() + half];
      shared[kThreads + m.thread()] += shared[kThreads + m.thread() + half];
    }
    if (m.thread() != 0) return;
    sums[m.block() * 2] = shared[0];
    sums[m.block() * 2 + 1] = shared[kThreads];
  }

 private:
  static GANTRY_HD uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31U);
  }
};

}  // namespace gantry
