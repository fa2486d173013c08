#pragma once

// Internal.

#include <cstdint>

#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/parallel_for.h"

namespace gantry {

/// The inverse of the Cholesky factor of a symmetric positive definite matrix A = L L^T, in f32
/// with the panel kernels; blocks on the diagonal in f64.
///
/// @param a      [n, n] row-major, rows `stride` elements apart, n a multiple of 32; the lower
///               triangle is read and overwritten by L
/// @param result panels of L^-1: panel p is [n, 32], its columns 32 p .. 32 p + 31; rows above 32 p
///               are not written
/// @return false if a pivot is not positive: A is not positive definite in f32
bool cholesky_inverse(float* a, int64_t n, int64_t stride, float* result, const Threads& threads,
                      IsaSet isas);

}  // namespace gantry
