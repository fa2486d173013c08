#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch_sm90a.cuh"

namespace gantry {

WgmmaLaunches cuda_wgmma_e2m1() { return wgmma_launches<Sm90Backend, DeviceElement::kE2M1>(); }

}  // namespace gantry
