#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/tolerance.h"

namespace gantry::test {

/// True where this machine can run a kernel of that instruction set.
inline bool can_run(Isa isa) { return isa == Isa::kAmxEmulated || detected_isas().contains(isa); }

/// One panel and up to 48 rows of x, as a kernel takes them and as the f32 values they mean.
struct PanelCase {
  PanelGemmKernel kernel;
  int64_t num_rows = 1;
  int64_t k = 32;
  std::vector<float> x;  // [num_rows, k]
  std::vector<float> w;  // [32, k]
  ByteBuffer rows;
  ByteBuffer panel;

  [[nodiscard]] int64_t stride() const { return kernel.row_stride_bytes(k); }

  /// Rounds x and w to what the kernel reads, and writes both as it reads them. What lies between a
  /// row's end and the next row is NaN: no kernel may read it.
  void store() {
    const DType dtype = kernel.rows == ActivationDType::kBF16 ? DType::kBF16 : DType::kF32;
    rows = ByteBuffer(static_cast<size_t>(num_rows * stride()));
    if (num_rows > 0) std::memset(rows.data(), 0xff, rows.size());
    for (int64_t r = 0; r < num_rows; ++r) {
      convert_from_f32(x.data() + r * k, k, dtype, rows.data() + r * stride());
      convert_to_f32(rows.data() + r * stride(), dtype, k, x.data() + r * k);
    }
    const PackedLayout layout{.dtype = kernel.weights, .gated = false, .n = kPanelWidth, .k = k};
    panel = ByteBuffer(static_cast<size_t>(layout.bytes()));
    pack_matrix(layout, w.data(), panel.data());
    w = unpack_matrix(layout, panel.data());
  }

  /// C of `count` rows from `first` on, by the kernel's own function.
  [[nodiscard]] std::vector<float> run(int64_t first, int64_t count,
                                       const std::byte* next = nullptr) const {
    Buffer<float> c(static_cast<size_t>(count * kPanelWidth));
    for (float& value : c.span())
      value = -77.0F;  // must go
    kernel.run({.x = rows.data() + first * stride(),
                .x_stride = stride(),
                .panel = panel.data(),
                .k = k,
                .num_rows = count,
                .c = c.data(),
                .next = next});
    return {c.span().begin(), c.span().end()};
  }
  [[nodiscard]] std::vector<float> run() const { return run(0, num_rows); }

  /// c[r][l] = sum over k of x[r][k] * w[l][k], in long double.
  [[nodiscard]] std::vector<double> reference() const {
    std::vector<double> c;
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t lane = 0; lane < kPanelWidth; ++lane) {
        long double sum = 0.0L;
        for (int64_t i = 0; i < k; ++i) {
          sum += static_cast<long double>(x[static_cast<size_t>(r * k + i)]) *
                 w[static_cast<size_t>(lane * k + i)];
        }
        c.push_back(static_cast<double>(sum));
      }
    }
    return c;
  }

  /// Every kernel takes each term through at most k + 1 roundings: FMA through k, vdpbf16ps through
  /// k (products of two bf16 are exact in f32), tdpbf16ps through 16 + 2 k / 32, the scalar kernel
  /// (whose double sums are exact beside f32) through one.
  [[nodiscard]] double tolerance() const {
    return dot_tolerance(k, largest_magnitude(x), largest_magnitude(w));
  }
};

struct PanelShape {
  int64_t num_rows = 1;
  int64_t k = 32;
  float x_deviation = 1.0F;
  float w_deviation = 1.0F;
};

inline PanelCase random_panel(SeededRng& rng, const PanelGemmKernel& kernel,
                              const PanelShape& shape) {
  PanelCase c{.kernel = kernel,
              .num_rows = shape.num_rows,
              .k = shape.k,
              .x = rng.normals(static_cast<size_t>(shape.num_rows * shape.k), shape.x_deviation),
              .w = rng.normals(static_cast<size_t>(kPanelWidth * shape.k), shape.w_deviation),
              .rows = {},
              .panel = {}};
  c.store();
  return c;
}

}  // namespace gantry::test
