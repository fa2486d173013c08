#include "kernels/quant/gram_matrix.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"

namespace gantry {
namespace {

constexpr int64_t kChunkRows = 512;  // a panel of them (64 KB) stays in the L2 cache
// Not a multiple of 4 KB, where all rows of a block would fall into one set of the L1 cache.
constexpr int64_t kChunkStride = kChunkRows + 16;

}  // namespace

GramMatrix::GramMatrix(int64_t n, IsaSet isas) : n_(n), padded_(padded_depth(n)), isas_(isas) {
  GANTRY_CHECK(n >= 1, ErrorCode::kInvalidArgument, "a Gram matrix of {} columns", n);
  panels_ = Buffer<float>(static_cast<size_t>(panel_offset(padded_ / kPanelWidth)));
  transposed_ = Buffer<float>(static_cast<size_t>(padded_ * kChunkStride));
  packed_ = Buffer<float>(static_cast<size_t>(padded_ * kChunkRows));
}

int64_t GramMatrix::bytes(int64_t n) noexcept {
  const int64_t padded = padded_depth(n);
  return 4 * (padded * (padded + kPanelWidth) / 2 + padded * (kChunkStride + kChunkRows));
}

int64_t GramMatrix::panel_offset(int64_t panel) const noexcept {
  // Sum over q < panel of (padded - 32 q) * 32.
  return kPanelWidth * (panel * padded_ - kPanelWidth * panel * (panel - 1) / 2);
}

void GramMatrix::clear() noexcept { std::fill_n(panels_.data(), panels_.size(), 0.0F); }

void GramMatrix::add(std::span<const float> rows, int64_t num_rows, int64_t stride,
                     const Threads& threads) {
  if (num_rows == 0) return;
  GANTRY_CHECK(stride >= n_ && static_cast<int64_t>(rows.size()) >= (num_rows - 1) * stride + n_,
               ErrorCode::kInvalidArgument, "{} rows of {} columns, {} apart, in {} elements",
               num_rows, n_, stride, rows.size());
  for (int64_t row = 0; row < num_rows; row += kChunkRows) {
    add_chunk(rows.data() + row * stride, std::min(kChunkRows, num_rows - row), stride, threads);
  }
}

void GramMatrix::add_chunk(const float* rows, int64_t num_rows, int64_t stride,
                           const Threads& threads) {
  const PanelGemmKernel& kernel = select_panel_gemm(
      {.weights = DType::kF32, .activations = ActivationDType::kF32, .isas = isas_});
  const int64_t depth = padded_depth(num_rows);
  const int64_t num_panels = padded_ / kPanelWidth;
  parallel_for(threads, num_panels, [&](int64_t panel) {
    float* packed = packed_.data() + panel * kChunkRows * kPanelWidth;
    const int64_t column = panel * kPanelWidth;
    const int64_t width = std::min(kPanelWidth, n_ - column);
    for (int64_t r = 0; r < depth; ++r) {
      float* line = packed + r * kPanelWidth;
      std::fill_n(line, kPanelWidth, 0.0F);
      if (r < num_rows) std::copy_n(rows + r * stride + column, width, line);
      for (int64_t l = 0; l < kPanelWidth; ++l)
        transposed_[static_cast<size_t>((column + l) * kChunkStride + r)] = line[l];
    }
  });
  // Tasks of at most 48 rows of one panel, from its diagonal on.
  const int64_t blocks = (padded_ + kMaxPanelRows - 1) / kMaxPanelRows;
  parallel_for(threads, num_panels * blocks, [&](int64_t task) {
    const int64_t panel = task / blocks;
    const int64_t first = panel * kPanelWidth;
    const int64_t begin = first + task % blocks * kMaxPanelRows;
    if (begin >= padded_) return;
    kernel.run({.x = reinterpret_cast<const std::byte*>(transposed_.data() + begin * kChunkStride),
                .x_stride = kChunkStride * 4,
                .panel = reinterpret_cast<const std::byte*>(packed_.data() +
                                                            panel * kChunkRows * kPanelWidth),
                .k = depth,
                .num_rows = std::min(kMaxPanelRows, padded_ - begin),
                .c = panels_.data() + panel_offset(panel) + (begin - first) * kPanelWidth,
                .next = nullptr,
                .accumulate = true});
  });
}

void GramMatrix::copy_to(std::span<float> matrix) const {
  GANTRY_CHECK(static_cast<int64_t>(matrix.size()) == n_ * n_, ErrorCode::kInvalidArgument,
               "expected {} elements, found {}", n_ * n_, matrix.size());
  for (int64_t i = 0; i < n_; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const int64_t panel = j / kPanelWidth;
      const float value = panels_[static_cast<size_t>(
          panel_offset(panel) + (i - panel * kPanelWidth) * kPanelWidth + j % kPanelWidth)];
      matrix[static_cast<size_t>(i * n_ + j)] = value;
      matrix[static_cast<size_t>(j * n_ + i)] = value;
    }
  }
}

}  // namespace gantry
