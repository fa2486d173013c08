// Instead of cuda_device.cpp in builds without CUDA.

#include "kernels/base/check.h"
#include "kernels/cuda/cuda_device.h"

namespace gantry {

std::shared_ptr<Device> open_cuda_device(int index) {
  fail(ErrorCode::kCuda, "cuda:{}: this build has no CUDA (GANTRY_WITH_CUDA)", index);
}

}  // namespace gantry
