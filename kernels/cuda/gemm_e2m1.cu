#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

GemmLaunches cuda_gemm_e2m1() { return gemm_launches<CudaBackend, DeviceElement::kE2M1>(); }

}  // namespace gantry
