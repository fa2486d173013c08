#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch_sm90a.cuh"

namespace gantry {

WgmmaLaunches cuda_wgmma_bf16() { return wgmma_launches<Sm90Backend, DeviceElement::kBF16>(); }

}  // namespace gantry
