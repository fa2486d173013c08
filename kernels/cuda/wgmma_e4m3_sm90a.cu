#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch_sm90a.cuh"

namespace gantry {

WgmmaLaunches cuda_wgmma_e4m3() { return wgmma_launches<Sm90Backend, DeviceElement::kE4M3>(); }

}  // namespace gantry
