#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch_sm90a.cuh"

namespace gantry {

WgmmaLaunches cuda_wgmma_int4() { return wgmma_launches<Sm90Backend, DeviceElement::kInt4>(); }

}  // namespace gantry
