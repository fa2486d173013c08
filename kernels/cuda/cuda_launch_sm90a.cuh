#pragma once

// Starts kernels that need sm_90a.

#include "kernels/cuda/cuda_launch.cuh"
#include "kernels/cuda/wgmma_launches.h"
#include "kernels/cuda/wgmma_machine_sm90a.cuh"

namespace gantry {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    run_kernel_sm90a(const __grid_constant__ Kernel kernel) {
  Sm90Machine machine;
  machine.begin();
  kernel.run(machine);
}

struct Sm90Backend {
  template <class Kernel>
  static void launch(const Kernel& kernel, const LaunchShape& shape,
                     const DeviceAttributes& attributes, const StreamPlace& stream) {
    launch_cuda<run_kernel_sm90a<Kernel>>(kernel, shape, attributes, stream);
  }
};

}  // namespace gantry
