#pragma once

// Random contents for the formats of `gantry synth`.

#include <memory>
#include <vector>

#include "tools/export_formats.h"
#include "tools/synth_content.h"

namespace gantry::cli {

/// One tensor of a quantized matrix.
struct MatrixTensor {
  std::string_view suffix;  ///< "weight", "weight_scale" ...
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;  ///< for one matrix; where experts are stacked, [E] stands before it
  std::shared_ptr<const Content> content;
};

/// The tensors of W[out, in] with weights of deviation 1/sqrt(in).
std::vector<MatrixTensor> synth_tensors(const ExportFormat& format, const MatrixSize& size);

}  // namespace gantry::cli
