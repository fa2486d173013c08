#pragma once

// Starts kernels on the GPU.

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_errors.h"
#include "kernels/cuda/device_machine.cuh"
#include "kernels/cuda/gemm_launches.h"

namespace gantry {

template <class Kernel>
__global__ void __launch_bounds__(kMaxThreads<Kernel>)
    run_kernel(const __grid_constant__ Kernel kernel) {
  DeviceMachine machine;
  machine.begin();
  kernel.run(machine);
}

/// Whether a kernel's code waits for the kernel before it: `DeviceMachine::begin` does from sm_90
/// on, but later GPUs may run code that was made from PTX of sm_80.
inline bool waits_for_kernel_before(const void* function) {
  cudaFuncAttributes attributes{};
  check_cuda(cudaFuncGetAttributes(&attributes, function), "cudaFuncGetAttributes");
  return attributes.ptxVersion >= 90;
}

/// Launches `function(kernel)`. After a kernel of the same stream it may be started before that one
/// has ended (programmatic dependent launch, sm_90 and later): every kernel begins by waiting for
/// the one before it (`DeviceMachine::begin`), so only the launch itself overlaps.
template <class Kernel>
void launch_cuda(void (*function)(Kernel), const Kernel& kernel, const LaunchShape& shape,
                 const DeviceAttributes& attributes, const StreamPlace& stream) {
  check_launch(shape, attributes);
  if (shape.blocks == 0) return;
  const auto shared = static_cast<size_t>(shape.shared_bytes);
  constexpr size_t kWithoutOptIn = 48 << 10;
  if (shared > kWithoutOptIn) {
    check_cuda(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(function),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "cudaFuncSetAttribute");
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = &overlap;
  const auto* code = reinterpret_cast<const void*>(function);
  const bool overlaps =
      stream.after_kernel && attributes.compute_capability >= 90 && waits_for_kernel_before(code);
  config.numAttrs = overlaps ? 1 : 0;
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  check_cuda(cudaLaunchKernelExC(&config, code, arguments), "kernel launch");
}

struct CudaBackend {
  template <class Kernel>
  static void launch(const Kernel& kernel, const LaunchShape& shape,
                     const DeviceAttributes& attributes, const StreamPlace& stream) {
    launch_cuda(run_kernel<Kernel>, kernel, shape, attributes, stream);
  }
};

}  // namespace gantry
