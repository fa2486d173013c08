// Builds without sm_90a.

#include "kernels/cuda/cuda_kernels.h"

namespace gantry {

bool built_for_sm90a() noexcept { return false; }
void add_cuda_wgmma(DeviceKernels&) {}

}  // namespace gantry
