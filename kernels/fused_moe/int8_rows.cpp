#include "kernels/fused_moe/int8_rows.h"

#include <algorithm>

#include "kernels/fused_moe/matrix_rows.h"

namespace gantry {
namespace {

constexpr int64_t kInt8Rows = 32;

struct Rows {
  const QuantizeInt8& all;
  const RowOps& ops;
  const RowQuantizer& quantizer;
  const QuantizedRows& slots;
};

void quantize(const Rows& rows, int64_t first, int64_t count, float static_scale) {
  QuantizeInt8 part = rows.all;
  if (part.token != nullptr) {
    part.token += first;
    part.choice += first;
  } else {
    part.x += first * part.x_stride;
    if (part.factor != nullptr) part.factor += first;
  }
  part.rows += first * part.stride;
  if (part.amax != nullptr) part.amax += first;
  part.num_rows = count;
  part.static_scale = static_scale;
  rows.ops.quantize_int8(part);
}

void quantize_task(const Rows& rows, int64_t task) {
  const int64_t begin = task * kInt8Rows;
  const int64_t end = std::min(begin + kInt8Rows, rows.all.num_rows);
  if (rows.quantizer.scale_offset < 0) return quantize(rows, begin, end - begin, 0.0F);
  const auto offsets = rows.slots.offsets;
  int64_t slot = std::upper_bound(offsets.begin(), offsets.end(), begin) - offsets.begin() - 1;
  for (int64_t row = begin; row < end; ++slot) {  // rows of one slot share its scale
    const int64_t last = std::min<int64_t>(end, offsets[static_cast<size_t>(slot) + 1]);
    if (row == last) continue;
    quantize(
        rows, row, last - row,
        *reinterpret_cast<const float*>(rows.slots.slots + slot * rows.slots.slot_stride_bytes +
                                        rows.quantizer.scale_offset));
    row = last;
  }
}

}  // namespace

QuantizeInt8 int8_rows_for(const MatrixKernels& kernels, const PackedLayout& layout) noexcept {
  QuantizeInt8 rows{};
  rows.n = layout.k;
  rows.padded = layout.padded_k();
  rows.tail = row_tail_offset(kernels, layout);
  rows.group = layout.format.grouped() ? layout.format.group : 0;
  rows.nibble_order = bits_of(layout.format.element) == 4;
  return rows;
}

void quantize_int8_rows(const QuantizeInt8& all, const RowOps& ops, const RowQuantizer& quantizer,
                        const QuantizedRows& slots, const Threads& threads) {
  const Rows rows{all, ops, quantizer, slots};
  parallel_for(threads, (all.num_rows + kInt8Rows - 1) / kInt8Rows,
               [&rows](int64_t task) { quantize_task(rows, task); });
}

}  // namespace gantry
