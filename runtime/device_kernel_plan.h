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
  RowFormat rows;      ///< how the rows of the routed experts are quantized; kNone: not at all
  bool rows8 = false;  ///< wgmma's batches of them stay e4m3; else codes are bf16
  std::string text;    ///< for the log
};

DeviceKernelPlan plan_device_kernels(const DeviceWeights& weights, const DeviceMoeOptions& options);

}  // namespace gantry
