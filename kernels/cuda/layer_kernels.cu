// All kernels but the GEMMs, and the table of both.

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

const DeviceKernels& cuda_kernels() {
  static const DeviceKernels kKernels =
      device_kernels<CudaBackend>({cuda_gemm_bf16(), cuda_gemm_f16(), cuda_gemm_e4m3(),
                                   cuda_gemm_int8(), cuda_gemm_int4(), cuda_gemm_e2m1()});
  return kKernels;
}

}  // namespace gantry
