#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

GemmLaunches cuda_gemm_row_groups() {
  return gemm_launches<CudaBackend, DeviceElement::kE4M3, /*kRowGroups=*/true>();
}

}  // namespace gantry
