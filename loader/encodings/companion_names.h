#pragma once

// What the names of a quantized matrix' tensors tell, without dtypes and shapes. Internal.

#include <set>
#include <string>
#include <vector>

#include "loader/encodings/quant_scheme.h"

namespace gantry {

/// The tensors that the scheme calls for beside those that are there: {"weight_scale_2"}. Where
/// either of two will do, both: "weight_scale or weight_scale_inv".
/// @param suffixes of the matrix' tensors ("weight", "weight_scale" ...). "weight" alone is
/// complete
///     for schemes that name codes otherwise: such a matrix is not quantized.
std::vector<std::string> missing_names(const QuantScheme& scheme,
                                       const std::set<std::string>& suffixes);

}  // namespace gantry
