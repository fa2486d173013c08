#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch_sm90a.cuh"

namespace gantry {

WgmmaLaunches cuda_wgmma_f16() { return wgmma_launches<Sm90Backend, DeviceElement::kF16>(); }

}  // namespace gantry
