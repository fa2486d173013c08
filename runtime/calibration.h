#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "runtime/activation_files.h"
#include "runtime/moe_model.h"

namespace gantry GANTRY_API {

/// What is collected, and from which tokens.
struct CalibrationSettings {
  /// Every token goes to every expert (whose statistics then have no holes), whatever the router
  /// says. What the layer gives on is not changed by that.
  bool route_all = false;
  int top_k = 0;          ///< experts a token instead of the model's own number; 0: its own
  bool hessians = false;  ///< sums of x x^T, for GPTQ
  std::vector<int64_t> groups = {16, 32, 128};  ///< inputs of a group for the group_amax tensors
  int64_t memory_bytes = int64_t{4} << 30;      ///< for all that calibration holds
  bool outputs = false;  ///< also run the layer as the model would, and store its output
  Threads threads;
  /// Called with the number of experts just done. May be empty.
  std::function<void(int64_t experts)> progress;
};

/// What calibrating one layer found.
struct LayerCalibration {
  int layer = -1;
  int64_t num_tokens = 0;
  bool resumed = false;                     ///< its file was there already
  int64_t num_batches = 0;                  ///< of experts, by memory
  std::vector<int64_t> tokens_per_expert;   ///< [E] that the router sent there
  std::vector<int64_t> samples_per_expert;  ///< [E] that statistics are from
  /// Experts without a sample: nothing is known of their inputs.
  [[nodiscard]] std::vector<int> uncalibrated() const;
};

/// "layer-00003.safetensors"
std::string calibration_file_name(int layer);

/// Collects what one layer's experts see and writes it to `<directory>/layer-NNNNN.safetensors`,
/// which appears only when it is whole. A file of the same settings, model and captures that is
/// already there is left as it is.
///
/// Experts run in f32 from dequantized weights, in batches that fit into memory_bytes; captures are
/// read in chunks. With route_all the input of gate and up is the same for all experts, so its
/// statistics and its Hessian are computed once.
///
/// Tensors, with "gate_up" for the input of w1 and w3 [H] and "down" for that of w2 [I]:
///
///   tokens_per_expert, samples_per_expert  i64 [E]
///   X.amax                                 f32 [E]: 0 for experts without a sample
///   X.channel_amax, X.channel_mean_abs     f32 [E, n]
///   X.group_amax_G                         f32 [E, ceil(n / G)] for each of settings.groups
///   X.layer_amax                           f32 [1]: over all experts
///   X.histogram                            i64 [E, 256]: see InputStatistics::bin_of
///   gate_up.hessian                        f32 [1, H, H] with route_all, else [E, H, H]
///   down.hessian                           f32 [E, I, I]
///   output                                 f32 [T, H], with settings.outputs
///
/// @throws Error kInvalidArgument if memory_bytes do not hold one expert, naming what is needed, or
///         a file of other settings is there
/// @throws Error kUnsupported for route_all where inputs are weighted by the router (Llama 4)
/// @throws Error as ActivationFiles::read, MatrixReader::read and SafetensorsWriter do
LayerCalibration calibrate_layer(MoeModel& model, int layer, const ActivationFiles& activations,
                                 const CalibrationSettings& settings,
                                 const std::filesystem::path& directory);

}  // namespace gantry
