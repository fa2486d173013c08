#pragma once

// Errors of CUDA calls, for files that nvcc compiles: without fmt, which would be most of their
// compile time.

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch_shape.h"

namespace gantry {

/// GPUs of a host at most.
inline constexpr int kMostGpus = 64;

/// @param status a cudaError_t
/// @throws Error kCuda (kOutOfMemory for cudaErrorMemoryAllocation) with CUDA's own words
void check_cuda(int status, const char* call);

/// @throws Error kUnsupported if the device cannot run such a launch
void check_launch(const LaunchShape& shape, const DeviceAttributes& attributes);

}  // namespace gantry
