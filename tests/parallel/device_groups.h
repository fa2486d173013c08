#pragma once

#include <functional>
#include <ostream>

#include "parallel/communicator_nccl.h"
#include "parallel/device_communicator.h"

namespace gantry::test {

/// What carries device memory. NCCL is the double on the emulated device, and the real library on a
/// GPU (GANTRY_TEST_DEVICE).
enum class Transport { kHostStaged, kNccl };

void PrintTo(Transport transport, std::ostream* out);

NcclOptions nccl_test_options();

/// Runs `body` on a fresh group of rank_groups.h with a device communicator over it.
void run_device_ranks(Transport transport, int num_ranks,
                      const std::function<void(DeviceCommunicator& world)>& body);

}  // namespace gantry::test
