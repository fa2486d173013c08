#pragma once

// Code that nvcc compiles for the GPU and every compiler for the host: index maths, conversions and
// kernels whose threads are emulated.

/// A function for host and device.
/// GANTRY_DEVICE marks the bodies of kernels: device code under nvcc, code of an emulated thread
/// elsewhere (`EmulatedMachine`). GANTRY_UNROLL unrolls the loop below it on the device, where
/// arrays must become registers.
#ifdef __CUDACC__
#define GANTRY_UNROLL _Pragma("unroll")
#define GANTRY_NO_UNROLL _Pragma("unroll 1")
#define GANTRY_HD __host__ __device__
#define GANTRY_DEVICE __device__
#else
#define GANTRY_UNROLL
#define GANTRY_NO_UNROLL
#define GANTRY_HD
#define GANTRY_DEVICE
#endif

namespace gantry {

/// ceil(a / b) of non-negative a and positive b.
template <typename A, typename B>
GANTRY_HD constexpr auto ceil_div(A a, B b) noexcept {
  return (a + b - 1) / b;
}

}  // namespace gantry
