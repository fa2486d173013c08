#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

GemmLaunches cuda_gemm_e4m3() { return gemm_launches<CudaBackend, DeviceElement::kE4M3>(); }

}  // namespace gantry
