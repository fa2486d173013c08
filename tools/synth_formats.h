#pragma once

// The formats of `gantry synth`: which tensors an exporter writes for a matrix, and what it says
// about them in config.json.

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/dtype.h"
#include "loader/tensor_geometry.h"
#include "tools/synth_content.h"

namespace gantry::cli {

/// One tensor of a quantized matrix.
struct MatrixTensor {
  std::string suffix;  ///< "weight", "weight_scale" ...
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;  ///< for one matrix; where experts are stacked, [E] stands before it
  std::shared_ptr<const Content> content;
};

/// How an exporter calls the three matrices of an expert.
enum class ExpertNames : uint8_t {
  kFamily,      ///< as the model's own files do
  kGateUpDown,  ///< gate_proj, up_proj, down_proj, of Mixtral too (exporters on Transformers 5)
};

/// A way of writing the routed experts. Everything else of a layer stays bf16.
struct SynthFormat {
  std::string_view name;
  std::string_view family = {};  ///< the only family that is written so; empty: any other
  int64_t group = 0;             ///< inputs of one scale, where they must divide a row
  int64_t out_multiple = 1;      ///< outputs that share a word
  bool stacked = false;          ///< all experts in one tensor, with the suffixes of parameters
  ExpertNames names = ExpertNames::kFamily;
  /// The tensors of W[out, in], with weights of deviation 1/sqrt(in). Null: bf16.
  std::vector<MatrixTensor> (*tensors)(const MatrixSize& size, int64_t group) = nullptr;
  /// quantization_config. `plain_modules`: the linear layers that stay bf16.
  nlohmann::ordered_json (*config)(const std::vector<std::string>& plain_modules,
                                   int64_t group) = nullptr;
};

/// The formats' names, in the order of the table.
std::vector<std::string_view> synth_format_names();

/// @throws Error kInvalidArgument listing the names if there is none of that name
const SynthFormat& find_synth_format(std::string_view name, std::string_view family);

/// @throws Error kInvalidArgument if the format has no way of writing a matrix of this size
void check_fits(const SynthFormat& format, const MatrixSize& size, std::string_view what);

}  // namespace gantry::cli
