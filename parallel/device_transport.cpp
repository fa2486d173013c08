#include "parallel/device_transport.h"

#include <unistd.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "parallel/communicator_nccl.h"
#include "parallel/startup_agreement.h"

namespace gantry {
namespace {

// Why NCCL is not for these ranks, or nothing. Collective; the same on every rank.
std::string reason_against_nccl(Communicator& world, const DeviceAttributes& device) {
  std::string own = device.bus_id;
  if (!own.empty()) {
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    own += " of ";
    own += host.data();
  }
  std::map<std::string, size_t> rank_of;
  const std::vector<std::string> all = gather_texts(world, own);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].empty()) return fmt::format("rank {} has no GPU", rank);
    const auto [other, first] = rank_of.emplace(all[rank], rank);
    if (!first) {
      return fmt::format("ranks {} and {} share GPU {}", other->second, rank, all[rank]);
    }
  }
  return "";
}

}  // namespace

std::string_view to_string(DeviceTransport transport) noexcept {
  switch (transport) {
    case DeviceTransport::kHost:
      return "host";
    case DeviceTransport::kNccl:
      return "nccl";
    case DeviceTransport::kAuto:
      break;
  }
  return "auto";
}

DeviceTransport parse_device_transport(std::string_view name) {
  for (const DeviceTransport one :
       {DeviceTransport::kAuto, DeviceTransport::kHost, DeviceTransport::kNccl}) {
    if (name == to_string(one)) return one;
  }
  fail(ErrorCode::kInvalidArgument, "device transport: expected auto, host or nccl, found '{}'",
       name);
}

std::unique_ptr<DeviceCommunicator> make_device_communicator(DeviceTransport transport,
                                                             Communicator& world,
                                                             std::shared_ptr<Device> device,
                                                             const CommunicatorOptions& options) {
  const auto make_nccl = [&] {
    auto made =
        make_nccl_communicator(device, bootstrap_over(world), {.waits = options, .library = ""});
    log(LogLevel::kInfo, "device memory moves over {}", made->description());
    return made;
  };
  if (transport == DeviceTransport::kNccl) return make_nccl();
  std::string reason = "as asked";
  if (transport == DeviceTransport::kAuto) {
    reason = reason_against_nccl(world, device->attributes());
    if (reason.empty()) {
      try {
        return make_nccl();
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kUnsupported) throw;  // that one is thrown on every rank
        reason = error.what();
        log(LogLevel::kWarn, "no NCCL: {}", reason);
      }
    }
  }
  log(LogLevel::kInfo, "device memory moves through the host's memory: {}", reason);
  return make_host_staged_communicator(world, std::move(device), options);
}

}  // namespace gantry
