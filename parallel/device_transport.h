#pragma once

#include <memory>
#include <string_view>

#include "kernels/base/export.h"
#include "parallel/device_communicator.h"

namespace gantry GANTRY_API {

/// What carries device memory between ranks.
enum class DeviceTransport : uint8_t {
  kAuto,  ///< NCCL where every rank has a GPU of its own and NCCL loads, else the host's memory
  kHost,
  kNccl,
};

std::string_view to_string(DeviceTransport transport) noexcept;
/// "auto", "host", "nccl". @throws Error kInvalidArgument
DeviceTransport parse_device_transport(std::string_view name);

/// Collective over `world`: a communicator for memory of each rank's device. Says in the log what
/// it is, and why where kAuto decides.
/// @param world outlives the result
/// @throws Error as make_nccl_communicator does, with kNccl; with kAuto a rank that cannot load
///         NCCL is a warning instead
std::unique_ptr<DeviceCommunicator> make_device_communicator(DeviceTransport transport,
                                                             Communicator& world,
                                                             std::shared_ptr<Device> device,
                                                             const CommunicatorOptions& options);

}  // namespace gantry
