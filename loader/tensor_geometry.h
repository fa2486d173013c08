#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/family_spec.h"
#include "loader/moe_config.h"

namespace gantry GANTRY_API {

/// A matrix's size in PyTorch's Linear order. A vector has in = 1.
struct MatrixSize {
  int64_t out = 0;
  int64_t in = 0;
};

/// Size of a part of one expert (or of the single tensor of a part) in full, before TP.
MatrixSize part_size(Part part, const MoeLayerSpec& layer);

/// The shapes that a tensor of this pattern and kind may have. The first is the usual one; vectors
/// are also written with a leading 1.
std::vector<std::vector<int64_t>> expected_shapes(const TensorPattern& pattern, TensorKind kind,
                                                  const MoeLayerSpec& layer);

/// Where the elements of one part of one expert stand in a tensor, as a strided matrix:
///   element (o, i) is at  offset + o * out_stride + i * in_stride   [elements from tensor start]
struct FileView {
  int64_t offset = 0;
  MatrixSize size;
  int64_t out_stride = 0;
  int64_t in_stride = 0;
  int64_t slab_offset = 0;   ///< first element of this expert's part of the tensor
  int64_t slab_rows = 0;     ///< rows of that part as the file stores it
  int64_t slab_cols = 0;     ///< elements in one such row
  bool rows_are_out = true;  ///< the file's rows run along `out` (else along `in`)
};

/// @param part   kW1, kW3 or kW2 for experts (also where the tensor is a fused kW13), else the
///               pattern's own part (kSharedW1 or kSharedW3 where it is kSharedW13)
/// @param expert logical expert id; ignored unless the tensor holds all experts
FileView file_view(const TensorPattern& pattern, TensorKind kind, const MoeLayerSpec& layer,
                   Part part, int expert);

/// "[8, 48, 64]"
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace gantry
