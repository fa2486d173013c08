#pragma once

#include "kernels/cuda/device_kernels.h"
#include "kernels/cuda/wgmma_launches.h"

namespace gantry {

/// The table of the GPU's kernels.
/// @param sm90a with those of sm_90a, which no other architecture runs
const DeviceKernels& cuda_kernels(bool sm90a);

/// Whether this build has code for sm_90a.
bool built_for_sm90a() noexcept;

// Each from a file of its own, so that they compile side by side.
GemmLaunches cuda_gemm_bf16();
GemmLaunches cuda_gemm_f16();
GemmLaunches cuda_gemm_e4m3();
GemmLaunches cuda_gemm_int8();
GemmLaunches cuda_gemm_int4();
GemmLaunches cuda_gemm_e2m1();
GemmLaunches cuda_gemm_row_groups();

WgmmaLaunches cuda_wgmma_bf16();
WgmmaLaunches cuda_wgmma_f16();
WgmmaLaunches cuda_wgmma_e4m3();
WgmmaLaunches cuda_wgmma_int8();
WgmmaLaunches cuda_wgmma_int4();
WgmmaLaunches cuda_wgmma_e2m1();

void add_cuda_wgmma_peaks(DeviceKernels& kernels);

/// Adds those above; nothing in a build without sm_90a.
void add_cuda_wgmma(DeviceKernels& kernels);

}  // namespace gantry
