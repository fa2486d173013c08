#pragma once

#include <memory>
#include <string>

#include "kernels/cuda/device.h"

namespace gantry::test {

/// The device that tests of GPU kernels run on: GANTRY_TEST_DEVICE ("emulated", "cuda:0" ...), else
/// the emulation. Null where the one asked for is not here; opened once.
std::shared_ptr<Device> test_device();

/// Why test_device() is null.
std::string no_device_reason();

}  // namespace gantry::test
