#pragma once

#include <cstdint>
#include <memory>

#include "kernels/base/export.h"
#include "kernels/cuda/device.h"

namespace gantry GANTRY_API {

/// What a GPU does at most: 1 GB = 1e9 bytes, a multiply-add is 2 FLOP.
struct DeviceCeilings {
  double read_gb_s = 0;          ///< memory read once, in order
  double mma_bf16_tflops = 0;    ///< mma.sync
  double wgmma_bf16_tflops = 0;  ///< 0: none
  double wgmma_e4m3_tflops = 0;  ///< 0: none

  [[nodiscard]] double bf16_tflops() const noexcept {
    return wgmma_bf16_tflops > mma_bf16_tflops ? wgmma_bf16_tflops : mma_bf16_tflops;
  }
};

/// How much work a measurement is; the defaults fill an H200 for some milliseconds.
struct CeilingWork {
  int64_t read_bytes = int64_t{4} << 30;  ///< far beyond the L2 cache
  int rounds = 20000;                     ///< products of each sum
  int repeats = 5;                        ///< the best one counts
};

/// Measures with events on a stream of its own.
/// @throws Error kOutOfMemory, kCuda; kInvalidArgument for work of nothing
DeviceCeilings measure_device_ceilings(const std::shared_ptr<Device>& device,
                                       const CeilingWork& work);

/// `read_gb_s` alone.
double measure_device_read_gb_s(const std::shared_ptr<Device>& device, const CeilingWork& work);

}  // namespace gantry
