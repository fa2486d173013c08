#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

GemmLaunches cuda_gemm_f16() { return gemm_launches<CudaBackend, DeviceElement::kF16>(); }

}  // namespace gantry
