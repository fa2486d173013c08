#include "tools/device_option.h"

#include <CLI/CLI.hpp>
#include <utility>

#include "kernels/base/check.h"

namespace gantry::cli {

std::string DeviceOption::text() const {
  return fmt::format("{}, transport {}", device.substr(0, device.find(':')), transport);
}

void add_device_option(CLI::App& app, DeviceOption& option) {
  app.add_option("--device", option.device,
                 "cpu, cuda (of several ranks: the GPU of the local rank), cuda:N, or emulated, "
                 "emulated:90 (the GPU's kernels, their threads emulated: slow)")
      ->capture_default_str();
  app.add_option("--device-transport", option.transport,
                 "what moves device memory between ranks: nccl, host (through the host's memory, "
                 "also where ranks share a GPU), or auto: nccl where each rank has its own GPU")
      ->check(CLI::IsMember({"auto", "host", "nccl"}))
      ->capture_default_str();
}

std::shared_ptr<Device> open_chosen_device(const DeviceOption& option,
                                           const std::string& activations, const RankSession& ranks,
                                           const Output& output) {
  if (option.is_cpu()) return nullptr;
  GANTRY_CHECK(activations.empty() || activations == "bf16" || activations == "scheme",
               ErrorCode::kInvalidArgument,
               "--device {}: GPU kernels take bf16 activations, or those of the scheme where they "
               "are fp8, found --activations {}",
               option.device, activations);
  const bool by_rank = option.device == "cuda" && ranks.world() != nullptr;
  const std::string name = by_rank ? fmt::format("cuda:{}", ranks.local_rank()) : option.device;
  auto device = open_device(name);
  const DeviceAttributes& attributes = device->attributes();
  output.text(fmt::format("device {}: {}, sm_{}, {} SMs, {} of memory", name, attributes.name,
                          attributes.compute_capability, attributes.num_sms,
                          human_bytes(attributes.memory_bytes)));
  return device;
}

RankSetup setup_of(const RankSession& ranks, const DeviceOption& option,
                   const ExchangeOption& exchange, const LaunchOptions& launch,
                   std::shared_ptr<Device> device) {
  RankSetup setup = ranks.setup();
  if (device == nullptr) return setup;
  setup.device = device;
  setup.device_options.reduce = parse_sum_order(exchange.reduce);
  const CommunicatorOptions waits{
      .timeout = std::chrono::milliseconds(static_cast<int64_t>(launch.timeout_seconds * 1e3))};
  using World = std::shared_ptr<DeviceCommunicator>;
  const auto kept = ranks.world() != nullptr ? std::make_shared<World>() : nullptr;
  setup.make_device_world =
      [=, transport = parse_device_transport(option.transport)](Communicator& world) -> World {
    if (kept != nullptr && *kept != nullptr) return *kept;
    World made = make_device_communicator(transport, world, device, waits);
    if (kept != nullptr) *kept = made;
    return made;
  };
  return setup;
}

}  // namespace gantry::cli
