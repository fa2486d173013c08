#pragma once

// Kernels over dense f32 rows: the router's matrix, latent projections, norms. Each is its
// parameters and a body for one thread; `launch_shape` says how many threads.

#include <math.h>

#include <cstdint>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/launch_shape.h"
#include "kernels/cuda/warp_ops.h"

namespace gantry {

/// What `LinearRows` does to each sum.
enum class LinearEpilogue : uint8_t { kNone, kSoftcap, kSigmoid };

/// y[t, n] = f(sum over k of x[t, k] w[n, k] + bias[n]), all f32. A warp computes one n for 8
/// tokens; the order of a sum does not depend on the batch.
struct LinearRows {
  static constexpr int kTokens = 8;
  static constexpr int kWarps = 4;

  const float* x;     ///< [T, K]
  const float* w;     ///< [N, K]
  const float* bias;  ///< [N] or null
  float* y;           ///< [T, N]
  int64_t num_tokens;
  int64_t n;
  int64_t k;
  LinearEpilogue epilogue;
  float softcap;

  [[nodiscard]] LaunchShape launch_shape() const {
    return {ceil_div(num_tokens, kTokens) * ceil_div(n, kWarps), kWarps * 32, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int lane = m.thread() % 32;
    const int64_t column_blocks = ceil_div(n, kWarps);
    const int64_t column = m.block() % column_blocks * kWarps + m.thread() / 32;
    const int64_t first = m.block() / column_blocks * kTokens;
    if (column >= n) return;  // whole warps
    const int64_t left = num_tokens - first;
    const int count = left < kTokens ? static_cast<int>(left) : kTokens;
    float sums[kTokens] = {};
    for (int64_t i = lane; i < k; i += 32) {
      const float weight = w[column * k + i];
      for (int t = 0; t < kTokens; ++t)
        if (t < count) sums[t] += x[(first + t) * k + i] * weight;
    }
    for (int t = 0; t < kTokens; ++t) {
      const float sum = warp_sum(m, sums[t]);
      if (lane == 0 && t < count) y[(first + t) * n + column] = finish(sum, column);
    }
  }

 private:
  GANTRY_DEVICE float finish(float sum, int64_t column) const {
    if (bias != nullptr) sum += bias[column];
    if (epilogue == LinearEpilogue::kSoftcap) return tanhf(sum / softcap) * softcap;
    if (epilogue == LinearEpilogue::kSigmoid) return 1.0F / (1.0F + expf(-sum));
    return sum;
  }
};

/// y[t] = x[t] * factor / sqrt(mean(x[t]^2) + epsilon) * weight; a warp a row. y may be x.
struct RmsNormRows {
  static constexpr int kWarps = 4;

  const float* x;       ///< [T, K]
  const float* weight;  ///< [K]
  float* y;             ///< [T, K]
  int64_t num_tokens;
  int64_t k;
  float epsilon;
  float factor;

  [[nodiscard]] LaunchShape launch_shape() const {
    return {ceil_div(num_tokens, kWarps), kWarps * 32, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int lane = m.thread() % 32;
    const int64_t row = m.block() * kWarps + m.thread() / 32;
    if (row >= num_tokens) return;
    float squares = 0.0F;
    for (int64_t i = lane; i < k; i += 32)
      squares += x[row * k + i] * x[row * k + i];
    const float mean = warp_sum(m, squares) / static_cast<float>(k);
    const float scale = factor / sqrtf(mean + epsilon);
    for (int64_t i = lane; i < k; i += 32)
      y[row * k + i] = x[row * k + i] * scale * weight[i];
  }
};

/// sum[i] = addends[0, i] + addends[1, i] + ..., f32, added in this order; one thread an element.
struct AddRows {
  static constexpr int kThreads = 128;

  const float* addends;  ///< [rows, count]
  float* sum;            ///< [count]
  int64_t count;
  int64_t rows;  ///< at least 1

  [[nodiscard]] LaunchShape launch_shape() const {
    return {ceil_div(count, int64_t{kThreads}), kThreads, 0};
  }

  template <class Machine>
  GANTRY_DEVICE void run(Machine& m) const {
    const int64_t i = m.block() * kThreads + m.thread();
    if (i >= count) return;
    float total = addends[i];
    for (int64_t row = 1; row < rows; ++row)
      total += addends[row * count + i];
    sum[i] = total;
  }
};

}  // namespace gantry
