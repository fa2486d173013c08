#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "kernels/quant/quantize_rows.h"

namespace gantry GANTRY_API {

/// How the input rows of one GEMM of a layer are quantized. A default one does nothing.
struct RowQuantizer {
  RowFormat format;
  int64_t scale_offset = -1;  ///< bytes from the start of a slot to its f32 static scale, or -1
  // Of a row that tensor parallel ranks hold in parts:
  int64_t first_column = 0;   ///< of this rank's part
  int64_t whole_columns = 0;  ///< of the row
  /// The ranks' parts share groups: magnitudes are exchanged before rows are quantized.
  bool spans_ranks = false;
};

/// The magnitudes of groups over the ranks that hold parts of the same rows: replaces each value by
/// the largest of any rank. Collective. Null function: there is one rank.
struct AmaxExchange {
  void (*max_over_ranks)(void* context, std::span<float> amax) = nullptr;
  void* context = nullptr;
};

/// Rows in expert order.
struct QuantizedRows {
  std::byte* rows = nullptr;  ///< [M, stride bytes] f32
  int64_t stride_bytes = 0;
  int64_t columns = 0;               ///< that exist; what follows them is padding
  std::span<const int32_t> offsets;  ///< [L + 1] rows of each slot
  const std::byte* slots = nullptr;
  int64_t slot_stride_bytes = 0;
};

/// f32 values of scratch that quantize_rows needs for up to `max_rows` rows.
int64_t amax_scratch_values(const RowQuantizer& quantizer, int64_t max_rows) noexcept;

/// Magnitudes of all groups of all rows over the ranks that share them: the first half of
/// quantize_rows, for who quantizes alone. Empty where no ranks share groups.
/// @return [M, groups], the beginning of `amax`
/// @throws as quantize_rows
std::span<float> exchange_amax(const RowQuantizer& quantizer, const QuantizedRows& rows,
                               const AmaxExchange& exchange, const Threads& threads,
                               std::span<float> amax);

/// Replaces every row by its quantized values (see quantize_row), each with the static scale of its
/// slot. Allocates nothing.
/// @param amax of amax_scratch_values
/// @throws Error kInvalidArgument if amax is too small, or ranks share groups without an exchange
void quantize_rows(const RowQuantizer& quantizer, const QuantizedRows& rows,
                   const AmaxExchange& exchange, const Threads& threads, std::span<float> amax);

}  // namespace gantry
