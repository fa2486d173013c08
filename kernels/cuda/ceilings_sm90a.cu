#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch_sm90a.cuh"

namespace gantry {

void add_cuda_wgmma_peaks(DeviceKernels& kernels) { add_wgmma_peaks<Sm90Backend>(kernels); }

}  // namespace gantry
