#pragma once

// Internal.

#include "kernels/base/dtype.h"
#include "loader/encodings/encoded_matrix.h"

namespace gantry {

/// Scales below this deserve a closer look: what they scale may have been rounded away.
float smallest_safe_scale(DType dtype) noexcept;

/// Where rounding to the dtype begins to cost more than 2^-4.
float well_rounded_from(DType dtype) noexcept;

/// Whether all scales of a matrix are finite, positive and not small, at a glance: then there is
/// nothing that check_scales would find. False also where it cannot tell.
bool scales_are_safe(const EncodedMatrix& matrix);

}  // namespace gantry
