#pragma once

// What `gantry quantize` writes: every tensor of the new checkpoint, and where it comes from.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "loader/checkpoint_writer.h"
#include "runtime/moe_model.h"
#include "tools/export_formats.h"
#include "tools/gguf_source.h"
#include "tools/linear_modules.h"

namespace gantry::cli {

/// What is quantized, and how.
struct QuantizeRequest {
  std::string format;
  int64_t group_size = 0;  ///< 0: the format's own
  std::vector<std::string> include =
      {};                                ///< further linear layers; wildcards, or "re:" and a regex
  std::vector<std::string> ignore = {};  ///< modules that are not quantized
  bool desc_act = false;  ///< GPTQ: groups in the order of activations, kept in a g_idx
};

/// One expert's matrix in the new checkpoint.
struct MatrixPlan {
  Part part = Part::kW1;
  bool quantized = true;
  /// Of the format's tensors, in their order; of a plain matrix its weight alone. Where experts are
  /// stacked, those of all experts (and of gate and up).
  std::vector<std::string> names;
  std::string bias_name;  ///< empty: it has none
};

/// One routed expert.
struct ExpertPlan {
  const MoeLayerSpec* spec = nullptr;
  int expert = 0;
  std::vector<MatrixPlan> matrices;  ///< in the order of kExpertParts
};

/// A linear layer beside the experts: copied, dequantized or quantized.
struct LinearPlan {
  LinearModule module;  ///< under its name in the new checkpoint
  bool quantized = false;
  MatrixSize size;
  [[nodiscard]] bool copied() const noexcept { return !quantized && module.scheme == nullptr; }
};

/// A tensor that stays as it is, and its name in the new checkpoint.
struct CopyPlan {
  std::string name;
  const CheckpointTensor* tensor = nullptr;
};

struct QuantizePlan {
  ExportFormat format;
  GateUp gate_up = GateUp::kSeparate;  ///< of stacked formats
  DType plain_dtype = DType::kBF16;    ///< of matrices that are dequantized
  std::vector<TensorInfo> tensors;     ///< all that are written, in that order
  std::vector<CopyPlan> copies;
  std::vector<LinearPlan> linear;
  std::vector<ExpertPlan> experts;
  std::string config_text;  ///< config.json
  std::vector<std::pair<std::string, std::string>> side_files;
  int64_t source_bytes = 0;  ///< that are read
  int64_t job_bytes = 0;     ///< memory that the largest single job needs
  int64_t num_quantized = 0;
};

/// @param model without findings
/// @param gguf  of a GGUF file: its config.json; the result has the names and config of the model's
///        own family
/// @throws Error kInvalidArgument if the format does not fit a matrix, or a pattern matches nothing
/// @throws Error kUnsupported for what cannot be read or spelled
QuantizePlan plan_quantize(const MoeModel& model, const QuantizeRequest& request,
                           const GgufSource* gguf = nullptr);

}  // namespace gantry::cli
