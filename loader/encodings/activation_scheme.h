#pragma once

#include <string>
#include <string_view>

#include "kernels/base/export.h"
#include "kernels/quant/quantize_rows.h"

namespace gantry GANTRY_API {

/// How the checkpoint wants the inputs of its quantized matrices to be quantized.
struct ActivationScheme {
  RowFormat format;  ///< kNone: not at all
  /// The tensor beside each weight that holds its static scale: "input_scale" or
  /// "input_global_scale"; empty where the format is not static.
  std::string scale_suffix;
  /// The tensor holds 1 / scale (ModelOpt's NVFP4: amax / (448 * 6), where the kernels take the
  /// reciprocal).
  bool scale_is_inverse = false;
  /// Why inputs that the file declares as quantized cannot be simulated; then format is kNone.
  std::string refusal;
  std::string note;  ///< where the simulation departs from the words of the file

  friend bool operator==(const ActivationScheme&, const ActivationScheme&) = default;
  [[nodiscard]] bool declared() const noexcept { return format.quantizes() || !refusal.empty(); }
};

/// "fp8 e4m3 per group of 128", "none", "none (reason of refusal)"
std::string describe(const ActivationScheme& scheme);

class ConfigReader;

// One reader an exporter. None of them throws for schemes that cannot be simulated: weights can be
// read without them. @throws Error kFormat for values of a wrong type.

/// compressed-tensors: `input_activations` of a config group {num_bits, type, strategy, dynamic
/// (false, true, "local"), group_size, symmetric, scale_dtype}, or null.
/// @param format of the group ("mxfp8-quantized"): older files have no scale_dtype
ActivationScheme compressed_tensors_activations(const ConfigReader& group, std::string_view format);

/// quant_method fp8: `activation_scheme` static or dynamic. Dynamic with weight_block_size has
/// groups of the block's columns (powers of two with scale_fmt ue8m0), else one scale a token.
ActivationScheme fp8_activations(const ConfigReader& config);

/// ModelOpt: the quant_algo says it. NVFP4 whose config groups have no input_activations is
/// weight-only.
/// @param algorithm in capitals
/// @param declares_inputs false if config_groups are there and none has input_activations
ActivationScheme modelopt_activations(std::string_view algorithm, bool declares_inputs);

/// Quark: `input_tensors` {dtype, qscheme, is_dynamic, group_size}, or null.
ActivationScheme quark_activations(const ConfigReader& global_quant_config);

/// AutoRound: act_bits, act_data_type (else data_type), act_dynamic, act_group_size.
ActivationScheme auto_round_activations(const ConfigReader& config);

/// quant_method mxfp8: groups of 32.
ActivationScheme mxfp8_activations();

}  // namespace gantry
