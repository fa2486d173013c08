#pragma once

// One format for matrices of different schemes. Internal.

#include <optional>

#include "loader/encodings/coded_matrix.h"

namespace gantry {

/// The smallest format that holds the weights of both exactly: codes of the wider element (int4 in
/// int8, FP4 in e4m3 ...), scales of the smaller groups, what either has of zero points, minimums
/// and output scales.
/// @return nothing if no element holds the values of both
std::optional<WeightFormat> common_format(const WeightFormat& a, const WeightFormat& b);

/// The same weights in a format that common_format gave for them and others.
CodedMatrix convert_format(const CodedMatrix& matrix, const WeightFormat& format);

}  // namespace gantry
