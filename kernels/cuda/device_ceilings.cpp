#include "kernels/cuda/device_ceilings.h"

#include <algorithm>
#include <functional>

#include "kernels/base/check.h"
#include "kernels/cuda/device_kernels.h"

namespace gantry {
namespace {

// The shortest of some runs, after one that warms up, milliseconds.
double shortest_ms(const std::shared_ptr<Device>& device, int repeats,
                   const std::function<void(StreamHandle)>& launch) {
  const OwnedStream stream(device);
  const OwnedEvent start(device);
  const OwnedEvent end(device);
  double shortest = 0.0;
  for (int i = 0; i <= repeats; ++i) {
    device->record(start.handle(), stream.handle());
    launch(stream.handle());
    device->record(end.handle(), stream.handle());
    device->synchronize(stream.handle());
    const double ms = std::max(device->elapsed_ms(start.handle(), end.handle()), 1e-6);
    if (i == 1 || (i > 1 && ms < shortest)) shortest = ms;
  }
  return shortest;
}

template <class Kernel>
double peak_tflops(const std::shared_ptr<Device>& device, const CeilingWork& work,
                   KernelLaunch<Kernel> launch, int blocks_of_sm) {
  if (launch == nullptr) return 0.0;
  const DeviceAttributes& attributes = device->attributes();
  Kernel kernel{int64_t{attributes.num_sms} * blocks_of_sm, work.rounds, nullptr};
  const DeviceBuffer sink(device, static_cast<size_t>(kernel.blocks * Kernel::kThreads) * 4);
  kernel.sink = sink.as<float>();
  const double ms = shortest_ms(device, work.repeats,
                                [&](StreamHandle stream) { launch(kernel, attributes, stream); });
  return kernel.flops() / ms / 1e9;
}

}  // namespace

double measure_device_read_gb_s(const std::shared_ptr<Device>& device, const CeilingWork& work) {
  GANTRY_CHECK(work.read_bytes >= 16 && work.repeats > 0 && work.rounds > 0,
               ErrorCode::kInvalidArgument,
               "ceilings: expected bytes, rounds and repeats, found "
               "{}, {} and {}",
               work.read_bytes, work.rounds, work.repeats);
  const DeviceAttributes& attributes = device->attributes();
  const DeviceBuffer memory(device, static_cast<size_t>(work.read_bytes));
  const DeviceBuffer sink(device, 4);
  const ReadMemory kernel{.data = memory.data(),
                          .bytes = work.read_bytes / 16 * 16,
                          .blocks = int64_t{attributes.num_sms} * 8,
                          .sink = sink.as<uint32_t>(),
                          .never = 0x5bd1e995u};
  const OwnedStream stream(device);
  device->clear(memory.data(), memory.size(), stream.handle());
  device->synchronize(stream.handle());
  const double ms = shortest_ms(device, work.repeats, [&](StreamHandle on) {
    device->kernels().read_memory(kernel, attributes, on);
  });
  return static_cast<double>(kernel.bytes) / ms / 1e6;
}

DeviceCeilings measure_device_ceilings(const std::shared_ptr<Device>& device,
                                       const CeilingWork& work) {
  const DeviceKernels& kernels = device->kernels();
  return {.read_gb_s = measure_device_read_gb_s(device, work),
          .mma_bf16_tflops = peak_tflops(device, work, kernels.mma_peak, 4),
          .wgmma_bf16_tflops = peak_tflops(device, work, kernels.wgmma_peak_bf16, 1),
          .wgmma_e4m3_tflops = peak_tflops(device, work, kernels.wgmma_peak_e4m3, 1)};
}

}  // namespace gantry
