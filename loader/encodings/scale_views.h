#pragma once

// Which tensors of a matrix are scales, and which codes each of them covers. Internal.

#include <string>
#include <vector>

#include "loader/encodings/scale_sanity.h"

namespace gantry {

/// The scales of a matrix that was decoded without an error (shapes and indices were checked
/// there): of blocks, rows, columns and the whole; and code books. Scales of activations are not
/// among them (loader/input_scales.h). The views point into `scheme` and `matrix`.
std::vector<ScaleView> scale_views(const QuantScheme& scheme, const EncodedMatrix& matrix);

/// "[3, 7]": the position of element `index` of a tensor, row-major.
std::string index_text(const EncodedTensor& tensor, int64_t index);

}  // namespace gantry
