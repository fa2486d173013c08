#pragma once

#include <memory>
#include <string>

#include "parallel/device_transport.h"
#include "tools/exchange_option.h"
#include "tools/rank_session.h"

namespace CLI {
class App;
}

namespace gantry::cli {

/// --device and --device-transport.
struct DeviceOption {
  std::string device = "cpu";
  std::string transport = "auto";

  [[nodiscard]] bool is_cpu() const noexcept { return device == "cpu"; }
  /// For comparison between ranks, which may run on GPUs of different numbers.
  [[nodiscard]] std::string text() const;
};

void add_device_option(CLI::App& app, DeviceOption& option);

/// Opens the device that --device names and says which one it is; null for the CPU. "cuda" is the
/// GPU of this process' local rank.
/// @throws Error kCuda if it is not here (exit 3); kInvalidArgument for activations other than bf16
///         and the scheme's
std::shared_ptr<Device> open_chosen_device(const DeviceOption& option,
                                           const std::string& activations, const RankSession& ranks,
                                           const Output& output);

/// RankSession::setup with the device, null for the CPU. Processes make one device communicator for
/// all layers; it goes with the result, which must go before the session ends.
RankSetup setup_of(const RankSession& ranks, const DeviceOption& option,
                   const ExchangeOption& exchange, const LaunchOptions& launch,
                   std::shared_ptr<Device> device);

}  // namespace gantry::cli
