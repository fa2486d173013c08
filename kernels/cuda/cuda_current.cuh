#pragma once

// The current GPU of a thread. For files with CUDA's headers.

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_errors.h"

namespace gantry {

/// Makes a GPU the thread's current one, and the one before it when it ends: the caller may have
/// another GPU in hand. Streams, events and launches belong to one GPU and fail on any other.
class CurrentGpu {
 public:
  explicit CurrentGpu(int index) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = before_ != index;
    if (changed_) check_cuda(cudaSetDevice(index), "cudaSetDevice");
  }
  CurrentGpu(const CurrentGpu&) = delete;
  CurrentGpu& operator=(const CurrentGpu&) = delete;
  ~CurrentGpu() {
    if (changed_) (void)cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace gantry
