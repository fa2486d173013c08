#pragma once

#include "kernels/base/parallel_for.h"
#include "kernels/fused_moe/row_ops.h"
#include "kernels/fused_moe/row_quantizer.h"
#include "kernels/grouped_gemm/coded_kernels.h"
#include "kernels/grouped_gemm/packed_layout.h"

namespace gantry {

/// How codes of rows stand for a matrix whose kernel multiplies integers: n, padded, tail, group
/// and order. Internal.
QuantizeInt8 int8_rows_for(const MatrixKernels& kernels, const PackedLayout& layout) noexcept;

/// Quantizes all rows of a call, in tasks: each with the static scale of its slot where `quantizer`
/// has one, else with its own.
/// @param all   rows 0 .. num_rows - 1; its static_scale is ignored
/// @param slots only offsets, slots and their stride are read
void quantize_int8_rows(const QuantizeInt8& all, const RowOps& ops, const RowQuantizer& quantizer,
                        const QuantizedRows& slots, const Threads& threads);

}  // namespace gantry
