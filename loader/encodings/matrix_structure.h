#pragma once

// What must stand beside the codes of a quantized matrix. Internal.

#include <optional>
#include <string>

#include "loader/encodings/encoded_matrix.h"

namespace gantry {

/// What a decoder would need and does not find beside the codes: "weight_scale_2". Nothing if the
/// tensors that are there are complete, or belong to no known encoding.
std::optional<std::string> missing_companion(const QuantScheme& scheme,
                                             const EncodedMatrix& matrix);

/// The shape that compressed-tensors writes beside packed codes, against the matrix' own.
/// @throws Error kFormat if they differ, or weight_shape is not two i64 or i32
void check_declared_shape(const EncodedMatrix& matrix);

}  // namespace gantry
