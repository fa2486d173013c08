// The kernels of sm_90a, in builds that have them.

#include "kernels/cuda/cuda_kernels.h"

namespace gantry {

bool built_for_sm90a() noexcept { return true; }

void add_cuda_wgmma(DeviceKernels& kernels) {
  add_wgmma(DeviceElement::kBF16, cuda_wgmma_bf16(), kernels);
  add_wgmma(DeviceElement::kF16, cuda_wgmma_f16(), kernels);
  add_wgmma(DeviceElement::kE4M3, cuda_wgmma_e4m3(), kernels);
  add_wgmma(DeviceElement::kInt8, cuda_wgmma_int8(), kernels);
  add_wgmma(DeviceElement::kInt4, cuda_wgmma_int4(), kernels);
  add_wgmma(DeviceElement::kE2M1, cuda_wgmma_e2m1(), kernels);
  add_cuda_wgmma_peaks(kernels);
}

}  // namespace gantry
