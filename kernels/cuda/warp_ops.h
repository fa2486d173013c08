#pragma once

// Sums and maxima over a warp by butterflies: the same order on every machine, every lane gets the
// result. `Machine` is EmulatedMachine or DeviceMachine.

#include <cstdint>

#include "kernels/cuda/host_device.h"

namespace gantry {

template <class Machine>
GANTRY_DEVICE float warp_sum(Machine& m, float value) {
  for (int mask = 16; mask > 0; mask /= 2)
    value += m.shuffle_xor(value, mask);
  return value;
}

template <class Machine>
GANTRY_DEVICE int32_t warp_sum(Machine& m, int32_t value) {
  for (int mask = 16; mask > 0; mask /= 2)
    value += m.shuffle_xor(value, mask);
  return value;
}

template <class Machine>
GANTRY_DEVICE float warp_max(Machine& m, float value) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const float other = m.shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

/// A candidate of a selection: the larger score wins, then the lower index; index -1 never wins.
struct Candidate {
  float score;
  int32_t index;
};

GANTRY_HD inline bool beats(const Candidate& a, const Candidate& b) noexcept {
  if (a.index < 0 || b.index < 0) return a.index >= 0;
  return a.score != b.score ? a.score > b.score : a.index < b.index;
}

template <class Machine>
GANTRY_DEVICE Candidate warp_best(Machine& m, Candidate own) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const Candidate other{m.shuffle_xor(own.score, mask), m.shuffle_xor(own.index, mask)};
    if (beats(other, own)) own = other;
  }
  return own;
}

}  // namespace gantry
