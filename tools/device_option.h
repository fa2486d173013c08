#pragma once

#include <memory>
#include <string>

#include "kernels/cuda/device.h"
#include "tools/cli_common.h"

namespace CLI {
class App;
}

namespace gantry::cli {

/// Adds --device cpu, cuda, cuda:N, emulated or emulated:90.
void add_device_option(CLI::App& app, std::string& option);

/// The device that --device names, or null for the CPU; says which one it is.
/// @throws Error kCuda if it is not here (exit 3)
/// @throws Error kInvalidArgument with what a GPU does not run: several ranks, activations other
///         than bf16 and the scheme's
std::shared_ptr<Device> open_chosen_device(const std::string& option,
                                           const ParallelConfig& parallel,
                                           const std::string& activations, const Output& output);

}  // namespace gantry::cli
