#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/coded_kernels.h"
#include "tests/kernels/coded_case.h"
#include "tests/support/tolerance.h"

namespace gantry::test {

/// Rows of x for one coded panel, as a kernel takes them and as the values they mean.
struct CodedRows {
  const CodedGemmKernel& kernel;
  const CodedCase& w;  // one panel: 32 rows, or 16 gate and 16 up rows
  int64_t num_rows;
  std::vector<float> x;  // [num_rows, k]
  ByteBuffer rows{};

  [[nodiscard]] int64_t element() const { return kernel.rows == ActivationDType::kBF16 ? 2 : 4; }
  [[nodiscard]] int64_t k() const { return w.layout.k; }
  [[nodiscard]] int64_t padded() const { return w.layout.padded_k(); }
  [[nodiscard]] int64_t padded_groups() const { return w.layout.coded_panel().num_groups; }
  [[nodiscard]] int64_t stride() const {
    const int64_t sums = w.layout.format.needs_sums() ? padded_groups() * 4 : 0;
    return (padded() * element() + sums + 63) / 64 * 64;
  }

  /// Rounds x to what the kernel reads. Behind a row and its sums there is NaN.
  void store() {
    const DType dtype = element() == 2 ? DType::kBF16 : DType::kF32;
    rows = ByteBuffer(static_cast<size_t>(num_rows * stride()));
    std::memset(rows.data(), 0xff, rows.size());
    for (int64_t r = 0; r < num_rows; ++r) {
      std::byte* row = rows.data() + r * stride();
      std::memset(row, 0, static_cast<size_t>(padded() * element()));
      convert_from_f32(x.data() + r * k(), k(), dtype, row);
      convert_to_f32(row, dtype, k(), x.data() + r * k());
      if (!w.layout.format.needs_sums()) continue;
      std::vector<float> sums(static_cast<size_t>(padded_groups()));
      for (int64_t i = 0; i < k(); ++i)
        sums[static_cast<size_t>(i / w.layout.format.group)] += x[at(r, i)];
      std::memcpy(row + padded() * element(), sums.data(), sums.size() * 4);
    }
  }

  /// C of `count` rows from `first` on.
  [[nodiscard]] std::vector<float> run(int64_t first, int64_t count,
                                       const std::byte* next = nullptr) const {
    const CodedPanel panel = w.layout.coded_panel();
    Buffer<float> c(static_cast<size_t>((count + 1) * kPanelWidth));
    std::fill(c.span().begin(), c.span().end(), -77.0F);
    kernel.run({.x = rows.data() + first * stride(),
                .x_stride = stride(),
                .panel = w.packed.data(),
                .k = padded(),
                .num_rows = count,
                .c = c.data(),
                .next = next,
                .coded = &panel,
                .x_sums = padded() * element()});
    const auto end = c.span().begin() + static_cast<ptrdiff_t>(count * kPanelWidth);
    EXPECT_TRUE(std::all_of(end, c.span().end(), [](float value) { return value == -77.0F; }))
        << "wrote beyond its rows";
    return {c.span().begin(), end};
  }

  /// Every value of `found`, rows 0 .. in order, against the exact sum
  ///
  ///   C = o * sum over g of s_g * (sum over k in g of x c - z_g * X_g) - m_g X_g,  X_g = sum of x
  ///
  /// A product x c passes through at most k roundings of its group's sum, one where the zero point
  /// joins it, one for each group from there on and one of the output scale; so do z x and m x,
  /// with their own k of X_g. So |error| <= 1.01 (k + G + 3) 2^-24 * |o| sum of |x| (|s| (|c| +
  /// |z|) + |m|), with codes and zero points being exact in what the kernels make of them. Kernels
  /// of bf16 rows take sums below 2^-126 as zero, at most one for each rounding.
  void expect_reference(const std::vector<float>& found) const {
    const int64_t lanes = w.layout.n;
    double worst = 0.0;
    int64_t wrong = 0;
    std::vector<double> factors;  // of every weight, once for all rows
    for (int64_t row = 0; row < lanes; ++row) {
      for (int64_t j = 0; j < k(); ++j)
        factors.push_back(w.scale(row, j) * w.output_scale(row));
    }
    for (size_t i = 0; i < found.size(); ++i) {
      const auto r = static_cast<int64_t>(i) / kPanelWidth;
      const int64_t lane = static_cast<int64_t>(i) % kPanelWidth;
      const int64_t row = row_of(lane);
      double sum = 0.0;
      double magnitude = 0.0;
      double scales = 0.0;
      double rounded = 0.0;
      for (int64_t j = 0; row < lanes && j < k(); ++j) {
        const double s = factors[at(row, j)];
        const double value = x[at(r, j)];
        const double least = w.minimum(row, j) * w.output_scale(row);
        sum += value * (s * (w.code(row, j) - w.zero(row, j)) - least);
        magnitude += std::fabs(s * value) * (std::fabs(w.code(row, j)) + std::fabs(w.zero(row, j)));
        magnitude += std::fabs(value * least);
        rounded += std::fabs(s * value * w.code(row, j));
        scales = std::max({scales, std::fabs(s), std::fabs(least)});
      }
      const auto roundings = static_cast<double>(padded() + padded_groups() + 3);
      const double tiny = element() == 2 ? 0x1p-126 : kF32Tiny;
      const double tolerance =
          roundings * (1.01 * kF32Rounding * magnitude + tiny * std::max(1.0, scales)) +
          code_rounding() * rounded;
      const double error = std::fabs(static_cast<double>(found[i]) - sum);
      if (error <= tolerance) continue;
      if (wrong++ == 0) {
        ADD_FAILURE() << "row " << r << ", lane " << lane << ": expected " << sum << ", found "
                      << found[i] << ", tolerance " << tolerance;
      }
      worst = std::max(worst, error);
    }
    EXPECT_EQ(wrong, 0) << "worst error " << worst << " in " << to_string(w.layout.format) << ", k "
                        << k() << ", " << num_rows << " rows";
  }

 private:
  /// Code books that bf16 does not hold are rounded to it for rows of bf16.
  [[nodiscard]] double code_rounding() const {
    const WeightElement element = w.layout.format.element;
    const bool book = element == WeightElement::kNF4 || element == WeightElement::kFP4;
    return book && kernel.rows == ActivationDType::kBF16 ? 0x1p-8 : 0.0;
  }
  [[nodiscard]] size_t at(int64_t r, int64_t i) const { return static_cast<size_t>(r * k() + i); }
  /// The row of W in a lane; `n` where there is none.
  [[nodiscard]] int64_t row_of(int64_t lane) const {
    if (!w.layout.gated) return std::min(lane, w.layout.n);
    const int64_t half = w.layout.n / 2;
    if (lane % 16 >= half) return w.layout.n;
    return lane < 16 ? lane : half + lane - 16;
  }
};

}  // namespace gantry::test
