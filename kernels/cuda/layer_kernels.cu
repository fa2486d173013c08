// All kernels but the GEMMs, and the table of both.

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

const DeviceKernels& cuda_kernels(bool sm90a) {
  static const DeviceKernels kGeneric =
      device_kernels<CudaBackend>({cuda_gemm_bf16(), cuda_gemm_f16(), cuda_gemm_e4m3(),
                                   cuda_gemm_int8(), cuda_gemm_int4(), cuda_gemm_e2m1()},
                                  cuda_gemm_row_groups());
  static const DeviceKernels kHopper = [] {
    DeviceKernels kernels = kGeneric;
    add_cuda_wgmma(kernels);
    return kernels;
  }();
  return sm90a ? kHopper : kGeneric;
}

}  // namespace gantry
