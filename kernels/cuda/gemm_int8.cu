#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

GemmLaunches cuda_gemm_int8() { return gemm_launches<CudaBackend, DeviceElement::kInt8>(); }

}  // namespace gantry
