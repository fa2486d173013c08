#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "kernels/quant/weight_format.h"

namespace gantry GANTRY_API {

/// One block taken apart into what a coded matrix is made of.
struct GgmlBlock {
  uint8_t codes[256];  ///< of the format's element, a byte each
  float scale;         ///< f16: of the block; mxfp4: the e8m0 code as a number
  float minimum;       ///< f16: of the block
  int8_t scales[16];   ///< integers of the groups, where the format has two levels
  int8_t minimums[16];
};

/// One element type of ggml: numbers one by one, or blocks of consecutive elements of a row.
struct GgmlType {
  uint32_t id = 0;        ///< in GGUF files
  std::string_view name;  ///< as ggml prints it: "q4_k"
  int64_t block_elements = 1;
  int64_t block_bytes = 0;
  std::optional<DType> dtype = {};  ///< of types without blocks
  /// One block to f32, each element with ggml's own formula and order of roundings. Null: this type
  /// cannot be read.
  void (*decode)(const std::byte* block, float* values) = nullptr;
  /// How kernels have it; plain where they do not. Gives the bits that `decode` gives.
  WeightFormat format = {};
  void (*split)(const std::byte* block, GgmlBlock& parts) = nullptr;

  [[nodiscard]] bool has_blocks() const noexcept { return !dtype.has_value(); }
};

/// The type of that number, or null.
const GgmlType* find_ggml_type(uint32_t id) noexcept;

/// The type of that name, or null.
const GgmlType* find_ggml_type(std::string_view name) noexcept;

/// "q4_k", or "type 77" for a number that is not known.
std::string ggml_type_name(uint32_t id);

/// Dequantizes consecutive blocks.
/// @param type   has blocks and a decoder
/// @param blocks [num_blocks, block_bytes], any alignment
/// @param values [num_blocks, block_elements], written
/// @source ggml's block formats: the struct layouts and dequantize_row_* of ggml-quants
void decode_ggml_blocks(const GgmlType& type, const std::byte* blocks, int64_t num_blocks,
                        float* values);

}  // namespace gantry
