#pragma once

// Where the elements of one expert's part stand in a tensor of a quantized matrix. Internal.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/encodings/quant_scheme.h"
#include "loader/family_spec.h"
#include "loader/moe_config.h"
#include "loader/relayout_plan.h"
#include "loader/tensor_geometry.h"
#include "loader/tensor_map.h"

namespace gantry {

/// All tensors with their names, in the order in which the files have them.
std::vector<std::pair<const std::string*, const CheckpointTensor*>> in_file_order(
    const Checkpoint& checkpoint);

/// The meaning of an expert's tensor of a MoE layer; nothing for all other names.
/// @throws Error kUnsupported for the names that adapters give to base layers
std::optional<TensorRef> expert_tensor_ref(const std::string& name, const MoeModelConfig& config,
                                           const TensorMap& map);

/// Adds a run of bytes that stay as they are to a plan; nothing for no bytes.
void add_run(RelayoutPlan& plan, size_t target, int64_t target_offset,
             const CheckpointTensor& source, int64_t source_offset, int64_t bytes);

/// One tensor of one expert's matrix (w1, w3 or w2), apart from how a file stores it: `rows` follow
/// the matrix' outputs, what stands in a row follows its inputs. A scalar stands for the whole
/// matrix.
struct EncodedShape {
  std::vector<int64_t> dims;  ///< as in a file of its own, [out, in]: rows first
  int64_t rows = 1;
  int64_t cols = 1;
  bool scalar = false;
};

/// What a source tensor says about the shape of a part's own tensor.
/// @param scheme how the matrix is quantized; null where it is not
/// @throws Error kUnsupported naming the tensor if it has no defined border between gate and up or
///         between experts; kFormat if the shape does not fit
EncodedShape encoded_shape(std::string_view name, const TensorInfo& info, const TensorRef& ref,
                           const TensorPattern& pattern, const MoeLayerSpec& layer, Part part,
                           const QuantScheme* scheme);

/// Where such a part stands in a tensor of `pattern`.
FileView encoded_view(const EncodedShape& shape, const TensorPattern& pattern,
                      std::string_view suffix, Part part, int expert);

/// The shape of the tensor of `pattern` that holds this part.
std::vector<int64_t> encoded_dims(const EncodedShape& shape, const TensorPattern& pattern,
                                  std::string_view suffix, int64_t num_experts);

/// @throws Error kUnsupported naming the tensor if a quantized matrix with a tensor of this suffix
///         cannot be stored as `pattern` does
void require_joinable(std::string_view name, std::string_view suffix, DType dtype,
                      const EncodedShape& shape, const TensorPattern& pattern,
                      const MoeLayerSpec& layer, const QuantScheme* scheme);

}  // namespace gantry
