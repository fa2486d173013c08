#pragma once

#include <memory>

#include "kernels/cuda/device.h"

namespace gantry {

/// @throws Error kCuda if there is no driver or GPU, or this build has no CUDA
/// @throws Error kInvalidArgument if there are fewer GPUs
std::shared_ptr<Device> open_cuda_device(int index);

}  // namespace gantry
