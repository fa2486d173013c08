#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/tolerance.h"

namespace gantry::test {

struct GemmShape {
  std::vector<int> rows_per_expert;
  int64_t n = 1;
  int64_t k = 1;
  bool has_bias = false;
  float x_deviation = 1.0F;
  float w_deviation = 1.0F;
};

/// One grouped GEMM: its inputs as the kernel takes them, and the weights' values as f32.
struct GemmCase {
  GemmShape shape;
  DType dtype = DType::kF32;
  std::vector<int32_t> offsets = {0};
  std::vector<float> x;            // [M, K]
  std::vector<float> w;            // [L, N, K], the values that the stored bytes mean
  std::vector<std::byte> w_bytes;  // [L, N, K] in dtype, no byte more: a read past the end shows
  std::vector<float> bias;         // [L, N] or empty

  [[nodiscard]] int64_t num_slots() const { return static_cast<int64_t>(offsets.size()) - 1; }
  [[nodiscard]] int64_t num_rows() const { return offsets.back(); }

  [[nodiscard]] ExpertWeights weights() const {
    ExpertWeights view;
    view.data = w_bytes.data();
    view.slot_stride_bytes = shape.n * shape.k * size_of(dtype);
    view.num_slots = num_slots();
    view.n = shape.n;
    view.k = shape.k;
    view.dtype = dtype;
    view.bias = bias.empty() ? nullptr : bias.data();
    view.bias_stride_bytes = shape.n * 4;
    return view;
  }

  /// Rounds `w` to the stored type, and reads back what was stored.
  void store_weights() {
    const auto count = static_cast<int64_t>(w.size());
    w_bytes.resize(w.size() * static_cast<size_t>(size_of(dtype)));
    convert_from_f32(w.data(), count, dtype, w_bytes.data());
    convert_to_f32(w_bytes.data(), dtype, count, w.data());
  }
};

inline GemmCase random_case(SeededRng& rng, DType dtype, const GemmShape& shape) {
  GemmCase c;
  c.shape = shape;
  c.dtype = dtype;
  for (const int rows : shape.rows_per_expert)
    c.offsets.push_back(c.offsets.back() + rows);
  c.x = rng.normals(static_cast<size_t>(c.num_rows() * shape.k), shape.x_deviation);
  c.w = rng.normals(static_cast<size_t>(c.num_slots() * shape.n * shape.k), shape.w_deviation);
  if (shape.has_bias) c.bias = rng.normals(static_cast<size_t>(c.num_slots() * shape.n));
  c.store_weights();
  return c;
}

/// Fills an expert's weights and bias with NaN: any read of them would reach the output.
inline void poison_expert(GemmCase& c, int64_t slot) {
  const auto size = static_cast<size_t>(c.shape.n * c.shape.k);
  const auto first = static_cast<size_t>(slot) * size;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (size_t i = first; i < first + size; ++i)
    c.w[i] = nan;
  c.store_weights();
  const auto n = static_cast<size_t>(c.shape.n);
  for (size_t i = 0; !c.bias.empty() && i < n; ++i)
    c.bias[static_cast<size_t>(slot) * n + i] = nan;
}

/// y[r][n] = bias[n] + sum over k of x[r][k] * w[n][k], in long double.
inline std::vector<double> reference(const GemmCase& c) {
  const auto n = static_cast<size_t>(c.shape.n);
  const auto k = static_cast<size_t>(c.shape.k);
  std::vector<double> y;
  for (size_t slot = 0; slot + 1 < c.offsets.size(); ++slot) {
    for (auto r = static_cast<size_t>(c.offsets[slot]);
         r < static_cast<size_t>(c.offsets[slot + 1]); ++r) {
      for (size_t col = 0; col < n; ++col) {
        long double sum = c.bias.empty() ? 0.0L : c.bias[slot * n + col];
        for (size_t i = 0; i < k; ++i) {
          sum += static_cast<long double>(c.x[r * k + i]) * c.w[(slot * n + col) * k + i];
        }
        y.push_back(static_cast<double>(sum));
      }
    }
  }
  return y;
}

inline double tolerance(const GemmCase& c) {
  return dot_tolerance(c.shape.k, largest_magnitude(c.x), largest_magnitude(c.w),
                       largest_magnitude(c.bias));
}

/// Runs the public entry with those kernels allowed; every output starts as a value that must go.
inline std::vector<float> run(const GemmCase& c, IsaSet isas, const Threads& threads = {}) {
  std::vector<float> y(static_cast<size_t>(c.num_rows() * c.shape.n), -77.0F);
  grouped_gemm(c.x, c.weights(), c.offsets, y, isas, threads);
  return y;
}

}  // namespace gantry::test
