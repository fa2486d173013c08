#pragma once

// The formats that `gantry quantize` and `gantry synth` write: which tensors an exporter has for a
// matrix, how it calls them, and what config.json says of them.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "loader/encodings/matrix_export.h"
#include "loader/family_spec.h"
#include "tools/export_config.h"

namespace gantry::cli {

/// How an exporter calls the three matrices of an expert.
enum class ExpertNames : uint8_t {
  kFamily,      ///< as the model's own files do
  kGateUpDown,  ///< gate_proj, up_proj, down_proj, of Mixtral too (exporters on Transformers 5)
};

/// How the config says that inputs are quantized.
enum class ExportActivations : uint8_t {
  kNone,
  kToken,   ///< one scale a token
  kGroup,   ///< one scale for a group of a token's columns
  kStatic,  ///< one scale of the checkpoint (NVFP4: and one for each group)
};

/// A way of writing quantized matrices.
struct ExportFormat {
  std::string_view name;
  std::string_view family = {};  ///< the only family that is written so; empty: any other
  MatrixExport matrix = {};      ///< no tensors: bf16, unquantized
  bool stacked = false;          ///< all experts in one tensor, with the suffixes of parameters
  ExpertNames names = ExpertNames::kFamily;
  /// Gate and up have one scale (FP8) or second scale (NVFP4): engines that run them as one matrix
  /// keep gate's alone.
  bool share_gate_up = false;
  ExportActivations activations = ExportActivations::kNone;
  bool desc_act = false;  ///< GPTQ: columns are in groups in the order of activations (g_idx)
  /// What the config calls it: compressed-tensors' format, ModelOpt's algorithm, GPTQModel's
  /// method.
  std::string_view algorithm = {};
  /// quantization_config. `plain_modules`: the linear layers that are not quantized.
  Json (*config)(const ExportFormat& format, const ModuleNames& plain_modules) = nullptr;

  [[nodiscard]] bool quantized() const noexcept { return !matrix.tensors.empty(); }
  [[nodiscard]] bool static_inputs() const noexcept {
    return activations == ExportActivations::kStatic;
  }
};

/// All formats. Of those of a name the first that the family may have is taken.
const std::vector<ExportFormat>& export_formats();

/// The formats' names, in the order of the table.
std::vector<std::string_view> export_format_names();

/// @param group inputs of one scale instead of the format's own; 0: its own
/// @throws Error kInvalidArgument listing the names if there is none of that name, or if the format
///         has no groups of a size that can be chosen
ExportFormat find_export_format(std::string_view name, std::string_view family, int64_t group = 0);

/// @throws Error kInvalidArgument if the format has no way of writing a matrix of this size
void check_fits(const ExportFormat& format, const MatrixSize& size, std::string_view what);

/// The same tensor under the names that the format's exporter gives to experts.
TensorRef respelled(const ExportFormat& format, const FamilySpec& family, TensorRef ref);

}  // namespace gantry::cli
