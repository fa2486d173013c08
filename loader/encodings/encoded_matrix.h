#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "loader/encodings/coded_matrix.h"
#include "loader/encodings/quant_scheme.h"
#include "loader/tensor_geometry.h"

namespace gantry GANTRY_API {

/// One tensor of a quantized matrix, in memory.
struct EncodedTensor {
  std::string name;  ///< in messages
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  std::string block_type = {};  ///< GGUF: its ggml type; `shape` counts elements

  [[nodiscard]] int64_t num_elements() const noexcept;
  [[nodiscard]] uint8_t byte(int64_t index) const noexcept {
    return static_cast<uint8_t>(data[index]);
  }
};

/// The tensors that together hold one matrix W[out, in], by suffix: "weight", "weight_scale" ...
struct EncodedMatrix {
  MatrixSize size;
  std::map<std::string, EncodedTensor, std::less<>> tensors;

  [[nodiscard]] const EncodedTensor* find(std::string_view suffix) const;
  /// @throws Error kFormat if it is not there
  [[nodiscard]] const EncodedTensor& require(std::string_view suffix) const;
};

/// One way of writing a quantized matrix: a row of the table that load and verify read. All are
/// read into codes and scales, but for what kernels have no format for, which is decoded to f32.
struct Encoding {
  std::string_view name;
  /// Whether these tensors are written that way.
  bool (*matches)(const QuantScheme& scheme, const EncodedMatrix& matrix);
  /// The format of `code`'s result, or a plain one where it has none for this matrix; looks at
  /// dtypes and shapes, not at data.
  WeightFormat (*format)(const QuantScheme& scheme, const EncodedMatrix& matrix) = nullptr;
  CodedMatrix (*code)(const QuantScheme& scheme, const EncodedMatrix& matrix) = nullptr;
  /// The whole matrix in f32, row-major [out, in], where not `code` and dequantize() give it.
  std::vector<float> (*decode)(const QuantScheme& scheme, const EncodedMatrix& matrix) = nullptr;
};

/// All encodings. At most one matches a matrix.
/// @throws Error kUnsupported naming the tensors if none does
const Encoding& find_encoding(const QuantScheme& scheme, const EncodedMatrix& matrix);

/// The format in which kernels can have a matrix, from its tensors' dtypes and the scheme. A
/// pre_quant_scale is not part of it: its inputs go through that.
/// @return nothing if they cannot: it is decoded to f32
/// @throws Error kFormat, kUnsupported as find_encoding does
std::optional<WeightFormat> coded_format(const QuantScheme& scheme, const EncodedMatrix& matrix);

/// Dequantizes a matrix with the formula of its format, each element within one f32 rounding of the
/// exact value. The reference path: kernels decode the same values in their own way.
/// @throws Error kFormat if a tensor's shape, dtype or content does not fit; kUnsupported
std::vector<float> decode_matrix(const QuantScheme& scheme, const EncodedMatrix& matrix);

}  // namespace gantry
