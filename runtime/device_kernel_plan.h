#pragma once

#include <string>

#include "kernels/cuda/device_kernels.h"
#include "runtime/device_moe_layer.h"
#include "runtime/device_weights.h"

namespace gantry {

/// Which kernels a layer uses on its device, decided once from the device's attributes. Internal.
struct DeviceKernelPlan {
  PrefillKernels prefill = PrefillKernels::kMma;  ///< of the routed experts
  PrefillKernels shared = PrefillKernels::kMma;
  bool rows8 = false;        ///< wgmma's batches are quantized to e4m3
  bool rows8_whole = false;  ///< one scale a row
  bool rows8_powers_of_two = false;
  std::string text;  ///< for the log
};

DeviceKernelPlan plan_device_kernels(const DeviceWeights& weights, const DeviceMoeOptions& options);

}  // namespace gantry
