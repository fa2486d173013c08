#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "loader/encodings/quant_scheme.h"

namespace gantry GANTRY_API {

/// What a checkpoint's quantization config says about each module (the name of a weight as the file
/// writes it, without ".weight", ".qweight" ...). One scheme for all, or several by name, pattern
/// and class: compressed-tensors' config groups, GPTQModel's `dynamic`, AutoRound's `extra_config`,
/// ModelOpt's `quantized_layers`, Quark's `layer_quant_config`.
///
/// Whether a matrix is quantized, its tensors say: the lists of modules that a config leaves out
/// are not reliable. A cheap value: copies share the rules, and schemes stay where they are.
class QuantConfig {
 public:
  /// The scheme by which a quantized matrix of this module is to be read, also where the config
  /// leaves the module out. Null: no part of the config is about it.
  /// @throws Error kFormat if several parts of the config that differ are
  /// @throws Error kUnsupported if the part that is cannot be read
  [[nodiscard]] const QuantScheme* scheme_for(std::string_view module) const;

  /// Whether the config says that the module is not quantized.
  [[nodiscard]] bool leaves_out(std::string_view module) const;

  /// The methods of all schemes: "gptq", "modelopt NVFP4 + modelopt FP8".
  [[nodiscard]] std::string methods() const;
  /// The file that it was read from, for messages.
  [[nodiscard]] const std::string& source() const noexcept;
  /// What is worth knowing: patterns that could not be read and decide nothing.
  [[nodiscard]] const std::vector<std::string>& notes() const noexcept;

  struct Rules;
  explicit QuantConfig(std::shared_ptr<const Rules> rules) : rules_(std::move(rules)) {}

 private:
  std::shared_ptr<const Rules> rules_;
};

/// Reads the quantization_config of a config.json's text.
/// @return nothing if there is none
/// @throws Error kFormat for values of a wrong type or without sense
/// @throws Error kUnsupported for methods that are not known and patterns that are not understood
std::optional<QuantConfig> read_quant_config(const std::string& config_text,
                                             const std::string& source);

/// A file beside config.json that some exporters keep the quantization config in.
struct QuantSidecar {
  std::string name;  ///< "hf_quant_config.json" (ModelOpt), "quantize_config.json" (GPTQ) ...
  std::string text;
};

/// The names of such files, in the order in which they are looked for.
const std::vector<std::string_view>& quant_sidecar_names();

/// Reads such a file. Errors as read_quant_config.
QuantConfig read_quant_sidecar(const QuantSidecar& sidecar, const std::string& source);

}  // namespace gantry
