#include "kernels/fused_moe/row_quantizer.h"

#include <algorithm>

#include "kernels/base/check.h"

// One pass over the rows. Where tensor parallel ranks share groups there are two, with the exchange
// of all rows' magnitudes between them.

namespace gantry {
namespace {

constexpr int64_t kQuantizerRows = 32;

struct QuantizerPass {
  const RowQuantizer& quantizer;
  const QuantizedRows& rows;
  std::span<float> amax;  // [M, groups], or empty
  int64_t groups;

  [[nodiscard]] int64_t num_rows() const { return rows.offsets.back(); }
  [[nodiscard]] int64_t num_tasks() const {
    return (num_rows() + kQuantizerRows - 1) / kQuantizerRows;
  }
  [[nodiscard]] RowPart row(int64_t r) const {
    return {{reinterpret_cast<float*>(rows.rows + r * rows.stride_bytes),
             static_cast<size_t>(rows.columns)},
            quantizer.first_column};
  }
  [[nodiscard]] std::span<float> row_amax(int64_t r) const {
    if (amax.empty()) return {};
    return amax.subspan(static_cast<size_t>(r * groups), static_cast<size_t>(groups));
  }
  [[nodiscard]] float scale_of_slot(int64_t slot) const {
    if (quantizer.scale_offset < 0) return 0.0F;
    return *reinterpret_cast<const float*>(rows.slots + slot * rows.slot_stride_bytes +
                                           quantizer.scale_offset);
  }
};

void amax_task(const QuantizerPass& pass, int64_t task) {
  const int64_t end = std::min(pass.num_rows(), (task + 1) * kQuantizerRows);
  for (int64_t r = task * kQuantizerRows; r < end; ++r) {
    const std::span<float> amax = pass.row_amax(r);
    std::fill(amax.begin(), amax.end(), 0.0F);
    raise_group_amax(pass.quantizer.format, pass.row(r), amax);
  }
}

void quantize_task(const QuantizerPass& pass, int64_t task) {
  const auto offsets = pass.rows.offsets;
  const int64_t begin = task * kQuantizerRows;
  const int64_t end = std::min(pass.num_rows(), begin + kQuantizerRows);
  int64_t slot = std::upper_bound(offsets.begin(), offsets.end(), begin) - offsets.begin() - 1;
  for (int64_t r = begin; r < end; ++r) {
    while (r >= offsets[static_cast<size_t>(slot) + 1])
      ++slot;
    quantize_row(pass.quantizer.format, pass.row(r), pass.row_amax(r), pass.scale_of_slot(slot));
  }
}

}  // namespace

int64_t amax_scratch_values(const RowQuantizer& quantizer, int64_t max_rows) noexcept {
  return quantizer.spans_ranks ? max_rows * quantizer.format.num_groups(quantizer.whole_columns)
                               : 0;
}

std::span<float> exchange_amax(const RowQuantizer& quantizer, const QuantizedRows& rows,
                               const AmaxExchange& exchange, const Threads& threads,
                               std::span<float> amax) {
  if (!quantizer.spans_ranks) return {};
  const int64_t values = amax_scratch_values(quantizer, rows.offsets.back());
  GANTRY_CHECK(values <= static_cast<int64_t>(amax.size()), ErrorCode::kInvalidArgument,
               "quantize_rows: {} rows need {} magnitudes, there are {}", rows.offsets.back(),
               values, amax.size());
  GANTRY_CHECK(exchange.max_over_ranks != nullptr, ErrorCode::kInvalidArgument,
               "quantize_rows: ranks share groups without an exchange");
  const QuantizerPass pass{quantizer, rows, amax.first(static_cast<size_t>(values)),
                           quantizer.format.num_groups(quantizer.whole_columns)};
  parallel_for(threads, pass.num_tasks(), [&pass](int64_t task) { amax_task(pass, task); });
  exchange.max_over_ranks(exchange.context, pass.amax);  // also without rows: it is collective
  return pass.amax;
}

void quantize_rows(const RowQuantizer& quantizer, const QuantizedRows& rows,
                   const AmaxExchange& exchange, const Threads& threads, std::span<float> amax) {
  if (!quantizer.format.quantizes()) return;
  const QuantizerPass pass{quantizer, rows, exchange_amax(quantizer, rows, exchange, threads, amax),
                           quantizer.format.num_groups(quantizer.whole_columns)};
  parallel_for(threads, pass.num_tasks(), [&pass](int64_t task) { quantize_task(pass, task); });
}

}  // namespace gantry
