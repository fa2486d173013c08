#pragma once

// Starts kernels on the GPU.

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>

#include "kernels/cuda/cuda_current.cuh"
#include "kernels/cuda/cuda_errors.h"
#include "kernels/cuda/device_machine.cuh"
#include "kernels/cuda/gemm_launches.h"

namespace gantry {

// Blocks that an SM must be able to hold, for ptxas. Without a number (0) it keeps registers low,
// so that more blocks fit, and may keep some of them in memory for that; with 1 it does not. On
// sm_90 the skinny kernels fit without, but for the widest ones of 4 bits.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
inline constexpr bool kSkinnyFits = true;
#else
inline constexpr bool kSkinnyFits = false;
#endif
template <class Kernel>
inline constexpr int kLeastBlocks = 1;
template <DeviceElement kElement, int kColumns, bool kRowGroups>
inline constexpr int kLeastBlocks<SkinnyGemm<kElement, kColumns, kRowGroups>> =
    kSkinnyFits && (kColumns<4 || bits_of(kElement)> 4) ? 0 : 1;

template <class Kernel>
__global__ void __launch_bounds__(kMaxThreads<Kernel>, kLeastBlocks<Kernel>)
    run_kernel(const __grid_constant__ Kernel kernel) {
  DeviceMachine machine;
  machine.begin();
  kernel.run(machine);
}

/// Prepares a kernel for the current GPU: all shared memory that a block may opt in to. Once for
/// each kernel and GPU, as it costs as much as a launch; it loads the kernel's code, too.
/// @return whether the code waits for the kernel before it: `DeviceMachine::begin` does from sm_90
///         on, but later GPUs may run code that was made from PTX of sm_80
inline bool prepare_kernel(const void* function, const DeviceAttributes& attributes) {
  check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(attributes.shared_bytes_per_block)),
             "cudaFuncSetAttribute");
  cudaFuncAttributes found{};
  check_cuda(cudaFuncGetAttributes(&found, function), "cudaFuncGetAttributes");
  return found.ptxVersion >= 90;
}

/// Launches `kFunction(kernel)`. After a kernel of the same stream it may be started before that
/// one has ended (programmatic dependent launch, sm_90 and later): every kernel begins by waiting
/// for the one before it (`DeviceMachine::begin`), so only the launch itself overlaps.
template <auto kFunction, class Kernel>
void launch_cuda(const Kernel& kernel, const LaunchShape& shape, const DeviceAttributes& attributes,
                 const StreamPlace& stream) {
  check_launch(shape, attributes);
  if (shape.blocks == 0) return;
  const CurrentGpu current(attributes.index);
  const auto* function = reinterpret_cast<const void*>(kFunction);
  enum : int { kUnprepared, kPrepared, kWaits };
  static std::array<std::atomic<int>, kMostGpus> states{};
  std::atomic<int>& state = states[static_cast<size_t>(attributes.index)];
  if (state.load(std::memory_order_acquire) == kUnprepared) {
    const bool waits = prepare_kernel(function, attributes);  // twice does no harm
    state.store(waits ? kWaits : kPrepared, std::memory_order_release);
  }
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = &overlap;
  const bool overlaps =
      stream.after_kernel && attributes.compute_capability >= 90 && state.load() == kWaits;
  config.numAttrs = overlaps ? 1 : 0;
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  check_cuda(cudaLaunchKernelExC(&config, function, arguments), "kernel launch");
}

struct CudaBackend {
  template <class Kernel>
  static void launch(const Kernel& kernel, const LaunchShape& shape,
                     const DeviceAttributes& attributes, const StreamPlace& stream) {
    launch_cuda<run_kernel<Kernel>>(kernel, shape, attributes, stream);
  }
};

}  // namespace gantry
