#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "kernels/quant/quantize_weights.h"
#include "loader/tensor_geometry.h"

namespace gantry GANTRY_API {

/// What one tensor of a quantized matrix holds.
enum class ExportRole : uint8_t {
  kCodes,
  kScales,
  kZeros,
  kSecondScale,   ///< NVFP4's
  kInputScale,    ///< of the matrix' input, where it is quantized with one scale of the checkpoint
  kShape,         ///< [out, in] as numbers
  kGroupIndex,    ///< GPTQ: the group of each input
  kInputFactors,  ///< ModelOpt's AWQ: what each input is multiplied by (pre_quant_scale)
};

/// The order of codes, scales or zero points in their tensor. b bits an element, groups of inputs
/// along in, blocks of outputs along out.
enum class ExportLayout : uint8_t {
  kBytes,        ///< [out, in], a byte each; int8 as two's complement
  kNibbles,      ///< [out, in / 2], the even input low
  kBlocks,       ///< [out, in / group, group / 2]: the same bytes (gpt-oss)
  kRowPairs,     ///< [out / 2, in], 4 bits in two's complement, the even output low (ModelOpt)
  kRowWords,     ///< [out, in * b / 32] words along in
  kInWords,      ///< [in * b / 32, out] words along in (GPTQ)
  kOutWords,     ///< [in, out / 8] words of eight outputs, interleaved (AWQ)
  kScalar,       ///< []
  kOne,          ///< [1]
  kGrid,         ///< [row blocks, groups]
  kGroupsFirst,  ///< [groups, out]
  kZeroRows,     ///< zero points [groups, out * b / 32], words along out, one taken off (GPTQ)
  kZeroAwq,      ///< zero points [groups, out / 8], as kOutWords
  kZeroColumns,  ///< zero points [out * b / 32, groups], words along out (compressed-tensors)
  kPair,         ///< [2]
  kInputs,       ///< [in]
};

/// A tensor that an exporter writes for a matrix: a row of a MatrixExport.
struct ExportTensor {
  std::string_view suffix;  ///< "weight_packed"
  ExportRole role = ExportRole::kCodes;
  DType dtype = DType::kU8;
  ExportLayout layout = ExportLayout::kBytes;
};

/// One way of writing a quantized matrix: the other direction of Encoding.
struct MatrixExport {
  WeightQuantization quantization;
  std::vector<ExportTensor> tensors;

  [[nodiscard]] const ExportTensor* find(ExportRole role) const noexcept;
};

/// The shape of a tensor for one matrix.
std::vector<int64_t> export_shape(const MatrixExport& format, const ExportTensor& tensor,
                                  const MatrixSize& size);

/// Why a matrix of this size cannot be written so (groups or words that its rows do not fill), or
/// empty.
std::string misfit(const MatrixExport& format, const MatrixSize& size);

/// The bytes of a tensor, as decode_matrix reads them.
/// @param input_amax the largest magnitude of the matrix' inputs: kInputScale is amax / 448 of FP8,
///                   amax / (448 * 6) of NVFP4 or its inverse; ignored otherwise
/// @param input_factors [in] of kInputFactors, values of its dtype; empty: ones
/// @throws Error kUnsupported if a value does not fit its dtype
std::vector<std::byte> export_bytes(const MatrixExport& format, const ExportTensor& tensor,
                                    const QuantizedWeights& weights, float input_amax,
                                    std::span<const float> input_factors = {});

}  // namespace gantry
