#include "tools/device_option.h"

#include <CLI/CLI.hpp>

#include "kernels/base/check.h"

namespace gantry::cli {

void add_device_option(CLI::App& app, std::string& option) {
  app.add_option("--device", option,
                 "cpu, cuda, cuda:N, or emulated, emulated:90 (the GPU's kernels, their threads "
                 "emulated: slow)")
      ->capture_default_str();
}

std::shared_ptr<Device> open_chosen_device(const std::string& option,
                                           const ParallelConfig& parallel,
                                           const std::string& activations, const Output& output) {
  if (option == "cpu") return nullptr;
  GANTRY_CHECK(parallel.world_size() == 1, ErrorCode::kInvalidArgument,
               "--device {}: a GPU runs one rank, found {}", option, parallel.world_size());
  GANTRY_CHECK(activations.empty() || activations == "bf16" || activations == "scheme",
               ErrorCode::kInvalidArgument,
               "--device {}: GPU kernels take bf16 activations, or those of the scheme where they "
               "are fp8, found --activations {}",
               option, activations);
  auto device = open_device(option);
  const DeviceAttributes& attributes = device->attributes();
  output.text(fmt::format("device {}: {}, sm_{}, {} SMs, {} of memory", option, attributes.name,
                          attributes.compute_capability, attributes.num_sms,
                          human_bytes(attributes.memory_bytes)));
  return device;
}

}  // namespace gantry::cli
