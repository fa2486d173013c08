#pragma once

#include <span>

namespace gantry {

/// x = x / sqrt(mean(x^2) + epsilon) * weight * factor, row by row, in double.
/// @param weight [H] @param x [T, H], read and written
void rms_norm(std::span<const float> weight, double epsilon, double factor,
              std::span<float> x) noexcept;

}  // namespace gantry
