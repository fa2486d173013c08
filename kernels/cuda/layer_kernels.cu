// All kernels but the GEMMs, and the table of both.

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/cuda_launch.cuh"

namespace gantry {

const DeviceKernels& cuda_kernels() {
  using B = CudaBackend;
  static const DeviceKernels kKernels = {
      .linear = launch_plain<B, LinearRows>,
      .rms_norm = launch_plain<B, RmsNormRows>,
      .route = launch_plain<B, RouteTokens>,
      .count_choices = launch_plain<B, CountChoices>,
      .scan_counts = launch_plain<B, ScanCounts>,
      .place_choices = launch_plain<B, PlaceChoices>,
      .gather = launch_plain<B, GatherExpertRows>,
      .combine = launch_plain<B, CombineRows>,
      .gemm = {cuda_gemm_bf16(), cuda_gemm_f16(), cuda_gemm_e4m3(), cuda_gemm_int8(),
               cuda_gemm_int4(), cuda_gemm_e2m1()}};
  return kKernels;
}

}  // namespace gantry
