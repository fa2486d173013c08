// A few rows: the coded kernel, which decodes in registers. Many rows: a piece of the panel is
// decoded into a buffer that stays in the L1 cache, then all rows meet it.

#include "kernels/fused_moe/matrix_rows.h"

#include <algorithm>

#include "kernels/base/float_convert.h"

namespace gantry {
namespace {

constexpr int64_t kPieceBytes = 16384;

int64_t element_bytes(const MatrixKernels& kernels) noexcept {
  return kernels.rows == ActivationDType::kInt8   ? 1
         : kernels.rows == ActivationDType::kBF16 ? 2
                                                  : 4;
}

int64_t tail_bytes(const MatrixKernels& kernels, const PackedLayout& layout) noexcept {
  const int64_t sums = 4 * layout.coded_panel().num_groups;
  if (kernels.rows == ActivationDType::kInt8) {
    return static_cast<int64_t>(sizeof(Int8RowTail)) + sums;
  }
  return layout.format.needs_sums() ? sums : 0;
}

// In lanes that the compiler can keep in vectors; the order depends on nothing but the count.
template <typename Load>
float sum_of(int64_t begin, int64_t end, const Load& load) noexcept {
  constexpr int64_t kLanes = 8;
  float lanes[kLanes] = {};
  for (int64_t k = begin; k < end; k += kLanes) {  // groups are multiples of 8
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[lane] += load(k + lane);
  }
  float sum = 0.0F;
  for (const float lane : lanes)
    sum += lane;
  return sum;
}

void scale_sums(const MultiplyPanel& call) noexcept {
  const auto* scales = reinterpret_cast<const float*>(call.panel + call.coded.output_scales);
  for (int64_t r = 0; r < call.num_rows; ++r) {
    float* c = call.c + r * kPanelWidth;
    for (int64_t lane = 0; lane < kPanelWidth; ++lane)
      c[lane] *= scales[lane];
  }
}

// Calls run(first row, rows) for even blocks of at most kMaxPanelRows.
template <typename Run>
void for_row_blocks(int64_t num_rows, const Run& run) {
  const int64_t blocks = (num_rows + kMaxPanelRows - 1) / kMaxPanelRows;
  const int64_t step = (num_rows + blocks - 1) / blocks;
  for (int64_t row = 0; row < num_rows; row += step)
    run(row, std::min(step, num_rows - row));
}

void multiply_decoded(const MultiplyPanel& call) noexcept {
  alignas(64) std::byte piece[kPieceBytes];
  const int64_t k = call.layout.padded_k();
  const DType dtype = call.kernels.dequantize->out;
  const int64_t step = kPieceBytes / (kPanelWidth * size_of(dtype));
  const int64_t x_bytes = element_bytes(call.kernels);
  for (int64_t begin = 0; begin < k; begin += step) {
    const int64_t depth = std::min(step, k - begin);
    call.kernels.dequantize->run({.panel = call.panel,
                                  .coded = &call.coded,
                                  .k_begin = begin,
                                  .k_count = depth,
                                  .out = piece,
                                  .next = call.next});
    for_row_blocks(call.num_rows, [&](int64_t row, int64_t rows) {
      call.kernels.gemm->run({.x = call.x + row * call.x_stride + begin * x_bytes,
                              .x_stride = call.x_stride,
                              .panel = piece,
                              .k = depth,
                              .num_rows = rows,
                              .c = call.c + row * kPanelWidth,
                              .next = nullptr,
                              .accumulate = begin > 0});
    });
  }
  if (call.coded.format.output_scale) scale_sums(call);
}

}  // namespace

int64_t row_stride_bytes(const MatrixKernels& kernels, const PackedLayout& layout) noexcept {
  return padded_stride(layout.padded_k() * element_bytes(kernels) + tail_bytes(kernels, layout));
}

int64_t f32_row_stride_bytes(const MatrixKernels& kernels, const PackedLayout& layout) noexcept {
  const int64_t stride = row_stride_bytes(kernels, layout);
  if (kernels.rows != ActivationDType::kInt8) return stride;
  return std::max(stride, padded_stride(layout.padded_k() * 4));
}

int64_t gathered_stride_bytes(const MatrixKernels& kernels, const PackedLayout& layout,
                              bool through_f32) noexcept {
  return through_f32 ? f32_row_stride_bytes(kernels, layout) : row_stride_bytes(kernels, layout);
}

void sum_groups(const MatrixKernels& kernels, const PackedLayout& layout, std::byte* rows,
                int64_t stride, int64_t num_rows) noexcept {
  if (!layout.format.needs_sums()) return;
  const int64_t k = layout.padded_k();
  const int64_t group = layout.format.group;
  const int64_t offset = row_tail_offset(kernels, layout);
  const bool bf16 = kernels.gemm->rows == ActivationDType::kBF16;
  for (int64_t r = 0; r < num_rows; ++r) {
    std::byte* row = rows + r * stride;
    auto* sums = reinterpret_cast<float*>(row + offset);
    for (int64_t begin = 0; begin < k; begin += group) {
      const int64_t end = std::min(begin + group, k);
      sums[begin / group] =
          bf16 ? sum_of(begin, end,
                        [x = reinterpret_cast<const uint16_t*>(row)](int64_t i) {
                          return bf16_to_f32(x[i]);
                        })
               : sum_of(begin, end,
                        [x = reinterpret_cast<const float*>(row)](int64_t i) { return x[i]; });
    }
  }
}

int64_t row_tail_offset(const MatrixKernels& kernels, const PackedLayout& layout) noexcept {
  return layout.padded_k() * element_bytes(kernels);
}

int64_t multiply_rows(const MatrixKernels& kernels) noexcept {
  return kernels.dequantize == nullptr ? kMaxPanelRows : kMaxMultiplyRows;
}

void multiply_panel(const MultiplyPanel& call) noexcept {
  const MatrixKernels& kernels = call.kernels;
  const bool plain = kernels.dequantize == nullptr;
  const CodedGemmKernel* coded = plain ? nullptr : kernels.coded_for(call.matrix_rows);
  if (!plain && coded == nullptr) return multiply_decoded(call);
  const auto run = plain ? kernels.gemm->run : coded->run;
  for_row_blocks(call.num_rows, [&](int64_t row, int64_t rows) {
    run({.x = call.x + row * call.x_stride,
         .x_stride = call.x_stride,
         .panel = call.panel,
         .k = call.layout.padded_k(),
         .num_rows = rows,
         .c = call.c + row * kPanelWidth,
         .next = row == 0 ? call.next : nullptr,
         .coded = plain ? nullptr : &call.coded,
         .x_sums = row_tail_offset(kernels, call.layout)});
  });
}

}  // namespace gantry
