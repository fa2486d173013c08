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
  kernel.run(machine);
}

struct CudaBackend {
  template <class Kernel>
  static void launch(const Kernel& kernel, const LaunchShape& shape,
                     const DeviceAttributes& attributes, StreamHandle stream) {
    check_launch(shape, attributes);
    if (shape.blocks == 0) return;
    const auto shared = static_cast<size_t>(shape.shared_bytes);
    constexpr size_t kWithoutOptIn = 48 << 10;
    if (shared > kWithoutOptIn) {
      check_cuda(
          cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "cudaFuncSetAttribute");
    }
    run_kernel<Kernel><<<static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.threads),
                         shared, static_cast<cudaStream_t>(stream)>>>(kernel);
    check_cuda(cudaGetLastError(), "kernel launch");
  }
};

}  // namespace gantry
