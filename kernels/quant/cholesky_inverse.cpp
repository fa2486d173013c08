#include "kernels/quant/cholesky_inverse.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"

namespace gantry {
namespace {

constexpr int64_t kBlock = kPanelWidth;
using Block = std::array<float, static_cast<size_t>(kBlock* kBlock)>;

const std::byte* bytes_of(const float* values) {
  return reinterpret_cast<const std::byte*>(values);
}

class Cholesky {
 public:
  Cholesky(float* a, int64_t n, int64_t stride, const Threads& threads, IsaSet isas)
      : a_(a),
        n_(n),
        stride_(stride),
        threads_(threads),
        kernel_(select_panel_gemm(
            {.weights = DType::kF32, .activations = ActivationDType::kF32, .isas = isas})),
        packed_(static_cast<size_t>(n * kBlock)),
        inverses_(static_cast<size_t>(n * kBlock)) {}

  // Left-looking: a column of blocks takes all earlier columns at once.
  bool factorize() {
    for (int64_t first = 0; first < n_; first += kBlock) {
      update_column(first);
      if (!factorize_diagonal(first)) return false;
      solve_below(first);
    }
    return true;
  }

  // Row block i of X = L^-1: X[i, j] = -L_ii^-1 sum over j <= k < i of L[i, k] X[k, j].
  void invert(float* result) {
    for (int64_t first = 0; first < n_; first += kBlock) {
      const float* inverse = inverses_.data() + first * kBlock;
      Block negative{};
      for (size_t i = 0; i < negative.size(); ++i)
        negative[i] = -inverse[i];
      alignas(64) Block rows = negative;
      parallel_for(threads_, first / kBlock + 1, [&](int64_t panel) {
        float* x = result + panel * n_ * kBlock;
        if (panel * kBlock == first) {
          std::copy_n(inverse, kBlock * kBlock, x + first * kBlock);
          return;
        }
        const int64_t begin = panel * kBlock;
        alignas(64) Block sum;
        multiply(a_ + first * stride_ + begin, stride_, x + begin * kBlock, first - begin, kBlock,
                 sum.data());
        multiply(rows.data(), kBlock, sum.data(), kBlock, kBlock, x + first * kBlock);
      });
    }
  }

 private:
  // c [rows, 32] = x [rows, depth] * panel [depth, 32]
  void multiply(const float* x, int64_t x_stride, const float* panel, int64_t depth, int64_t rows,
                float* c) const {
    kernel_.run({.x = bytes_of(x),
                 .x_stride = x_stride * 4,
                 .panel = bytes_of(panel),
                 .k = depth,
                 .num_rows = rows,
                 .c = c,
                 .next = nullptr});
  }

  // A[first.., first..+32) -= L[first.., 0..first) * L[first..+32, 0..first)^T
  void update_column(int64_t first) {
    if (first == 0) return;
    for (int64_t k = 0; k < first; ++k) {
      for (int64_t l = 0; l < kBlock; ++l)
        packed_[static_cast<size_t>(k * kBlock + l)] = a_[(first + l) * stride_ + k];
    }
    for_row_blocks(first, [&](int64_t row, int64_t rows) {
      alignas(64) std::array<float, static_cast<size_t>(kMaxPanelRows * kBlock)> c;
      multiply(a_ + row * stride_, stride_, packed_.data(), first, rows, c.data());
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t l = 0; l < kBlock; ++l)
          a_[(row + r) * stride_ + first + l] -= c[static_cast<size_t>(r * kBlock + l)];
      }
    });
  }

  // The block on the diagonal and its inverse, in f64.
  bool factorize_diagonal(int64_t first) {
    std::array<std::array<double, kBlock>, kBlock> lower{};
    for (size_t i = 0; i < kBlock; ++i) {
      for (size_t j = 0; j <= i; ++j) {
        double sum =
            a_[(first + static_cast<int64_t>(i)) * stride_ + first + static_cast<int64_t>(j)];
        for (size_t k = 0; k < j; ++k)
          sum -= lower[i][k] * lower[j][k];
        if (i != j) {
          lower[i][j] = sum / lower[j][j];
          continue;
        }
        if (!(sum > 0.0) || !std::isfinite(sum)) return false;
        lower[i][i] = std::sqrt(sum);
      }
    }
    std::array<std::array<double, kBlock>, kBlock> inverse{};
    for (size_t j = 0; j < kBlock; ++j) {
      inverse[j][j] = 1.0 / lower[j][j];
      for (size_t i = j + 1; i < kBlock; ++i) {
        double sum = 0.0;
        for (size_t k = j; k < i; ++k)
          sum += lower[i][k] * inverse[k][j];
        inverse[i][j] = -sum / lower[i][i];
      }
    }
    for (int64_t i = 0; i < kBlock; ++i) {
      for (int64_t j = 0; j < kBlock; ++j) {
        const auto r = static_cast<size_t>(i);
        const auto c = static_cast<size_t>(j);
        a_[(first + i) * stride_ + first + j] = static_cast<float>(lower[r][c]);
        inverses_[static_cast<size_t>((first + i) * kBlock + j)] =
            static_cast<float>(inverse[r][c]);
      }
    }
    return true;
  }

  // L[below, first..+32) = A[below, first..+32) * (L_ff^-1)^T
  void solve_below(int64_t first) {
    alignas(64) Block transposed;
    for (int64_t i = 0; i < kBlock; ++i) {
      for (int64_t j = 0; j < kBlock; ++j) {
        transposed[static_cast<size_t>(j * kBlock + i)] =
            inverses_[static_cast<size_t>((first + i) * kBlock + j)];
      }
    }
    for_row_blocks(first + kBlock, [&](int64_t row, int64_t rows) {
      alignas(64) std::array<float, static_cast<size_t>(kMaxPanelRows * kBlock)> c;
      multiply(a_ + row * stride_ + first, stride_, transposed.data(), kBlock, rows, c.data());
      for (int64_t r = 0; r < rows; ++r)
        std::copy_n(c.data() + r * kBlock, kBlock, a_ + (row + r) * stride_ + first);
    });
  }

  template <typename Body>
  void for_row_blocks(int64_t begin, const Body& body) {
    const int64_t blocks = (n_ - begin + kMaxPanelRows - 1) / kMaxPanelRows;
    parallel_for(threads_, blocks, [&](int64_t block) {
      const int64_t row = begin + block * kMaxPanelRows;
      body(row, std::min(kMaxPanelRows, n_ - row));
    });
  }

  float* a_;
  int64_t n_;
  int64_t stride_;
  const Threads& threads_;
  const PanelGemmKernel& kernel_;
  Buffer<float> packed_;    // [n, 32] of the column that is being updated
  Buffer<float> inverses_;  // [n, 32]: inverses of the blocks on the diagonal
};

}  // namespace

bool cholesky_inverse(float* a, int64_t n, int64_t stride, float* result, const Threads& threads,
                      IsaSet isas) {
  Cholesky cholesky(a, n, stride, threads, isas);
  if (!cholesky.factorize()) return false;
  cholesky.invert(result);
  return true;
}

}  // namespace gantry
