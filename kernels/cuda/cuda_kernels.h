#pragma once

#include "kernels/cuda/device_kernels.h"

namespace gantry {

/// The table of the GPU's kernels.
const DeviceKernels& cuda_kernels();

// Each from a file of its own, so that they compile side by side.
GemmLaunches cuda_gemm_bf16();
GemmLaunches cuda_gemm_f16();
GemmLaunches cuda_gemm_e4m3();
GemmLaunches cuda_gemm_int8();
GemmLaunches cuda_gemm_int4();
GemmLaunches cuda_gemm_e2m1();

}  // namespace gantry
