#pragma once

// Where the elements of a warp's matrix product m16n8k16 stand in its lanes' registers.
// @source PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"

#include "kernels/cuda/host_device.h"

namespace gantry {

struct FragmentPlace {
  int row;
  int col;
};

/// A [16 rows, 16 k]: element e (0 .. 7) of a lane, two to a register.
GANTRY_HD constexpr FragmentPlace mma_a_place(int lane, int e) noexcept {
  return {lane / 4 + (e % 4 >= 2 ? 8 : 0), lane % 4 * 2 + e % 2 + (e >= 4 ? 8 : 0)};
}

/// B [16 k, 8 columns]: element e (0 .. 3) of a lane, two to a register.
GANTRY_HD constexpr FragmentPlace mma_b_place(int lane, int e) noexcept {
  return {lane % 4 * 2 + e % 2 + (e >= 2 ? 8 : 0), lane / 4};
}

/// C [16 rows, 8 columns], f32: element e (0 .. 3) of a lane.
GANTRY_HD constexpr FragmentPlace mma_c_place(int lane, int e) noexcept {
  return {lane / 4 + (e >= 2 ? 8 : 0), lane % 4 * 2 + e % 2};
}

/// A [16 rows of the warp, 32 k] of 8-bit elements of wgmma m64k32: element e (0 .. 15) of a lane,
/// four to a register.
GANTRY_HD constexpr FragmentPlace wgmma_a8_place(int lane, int e) noexcept {
  return {lane / 4 + e / 4 % 2 * 8, lane % 4 * 4 + e % 4 + e / 8 * 16};
}

}  // namespace gantry
