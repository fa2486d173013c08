#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

GemmLaunches cuda_gemm_int4() { return gemm_launches<CudaBackend, DeviceElement::kInt4>(); }

}  // namespace gantry
