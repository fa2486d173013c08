#pragma once

// Scales of a matrix, whatever their dtype and shape. Internal.

#include <cstdint>
#include <vector>

#include "loader/encodings/coded_matrix.h"
#include "loader/encodings/encoded_matrix.h"

namespace gantry {

/// Values of a tensor of floats (f32, f16, bf16, e4m3, e5m2) or of e8m0 exponents (also stored as
/// u8), in f32.
/// @throws Error kFormat for another dtype
std::vector<float> scale_values(const EncodedTensor& tensor);

/// The scales of W[out, in]: element (o, i) is scaled by values[(o / rows_per) * cols + i /
/// cols_per].
struct ScaleValues {
  std::vector<float> values;
  int64_t rows_per = 1;
  int64_t cols_per = 1;
  int64_t cols = 1;

  [[nodiscard]] float at(int64_t out, int64_t in) const noexcept {
    return values[static_cast<size_t>(out / rows_per * cols + in / cols_per)];
  }
};

/// Reads a scale tensor as the scheme's grid. Exporters write the same grid in different shapes
/// ([N], [N, 1], [N / 128, 1, K / 128, 1] ...), so only the number of elements must fit.
/// @throws Error kFormat naming the tensor, what was expected and what was found
ScaleValues read_scales(const EncodedTensor& tensor, const MatrixSize& size,
                        const QuantScheme& scheme);

/// How kernels store the values of a scale tensor without loss.
/// @throws Error kUnsupported if they cannot
ScaleType scale_type_of(const EncodedTensor& tensor);

/// Gives a scheme's grid to a format: per output, or in groups of inputs (of all rows of a block).
void set_grid(WeightFormat& format, const QuantScheme& scheme, const MatrixSize& size,
              const EncodedTensor& scales);

/// Gives a coded matrix, whose format is known, its scales: as they stand in the file where there
/// is one a group and output, else spread over the groups and outputs.
/// @throws Error kFormat as read_scales does
void set_scales(CodedMatrix& coded, const EncodedTensor& tensor, const QuantScheme& scheme);

/// Lets a coded matrix use a tensor of scales [out, groups] as it stands in the file.
/// @throws Error kFormat if it has another number of elements; kUnsupported as scale_type_of does
void set_file_scales(CodedMatrix& coded, const EncodedTensor& tensor);

/// A grid of groups of `group` inputs.
ScaleValues read_group_scales(const EncodedTensor& tensor, const MatrixSize& size, int64_t group);

/// @throws Error kFormat unless the tensor has this dtype and shape
void require_tensor(const EncodedTensor& tensor, DType dtype, const std::vector<int64_t>& shape);

}  // namespace gantry
