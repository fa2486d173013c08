#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

GemmLaunches cuda_gemm_bf16() { return gemm_launches<CudaBackend, DeviceElement::kBF16>(); }

}  // namespace gantry
