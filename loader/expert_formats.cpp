#include "loader/expert_formats.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "loader/encoded_reader.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/expected_tensors.h"

namespace gantry {
namespace {

EncodedMatrix describe(const LayerTensors& tensors, const MoeLayerSpec& layer, int expert,
                       Part part) {
  EncodedMatrix matrix;
  matrix.size = part_size(part, layer);
  for (const TensorSource* source : encoded_sources(tensors, expert, part)) {
    const TensorInfo& info = source->tensor->info;
    matrix.tensors.emplace(suffix_of(*source), EncodedTensor{source->name, info.dtype, info.shape,
                                                             nullptr, info.block_type});
  }
  return matrix;
}

// Whether inputs are in groups by g_idx other than in order. Ascending groups are in order, except
// for uneven ones, which the reader then finds.
bool has_activation_order(const Checkpoint& checkpoint, const LayerTensors& tensors, int expert,
                          Part part) {
  for (const TensorSource* source : encoded_sources(tensors, expert, part)) {
    if (suffix_of(*source) != "g_idx" && suffix_of(*source) != "weight_g_idx") continue;
    const TensorInfo& info = source->tensor->info;
    if (info.dtype != DType::kI32) return true;  // the reader will refuse it
    std::vector<int32_t> groups(static_cast<size_t>(info.num_elements()));
    checkpoint.files()[static_cast<size_t>(source->tensor->file)].read(info.begin, groups.data(),
                                                                       info.num_bytes());
    if (!std::is_sorted(groups.begin(), groups.end())) return true;
  }
  return false;
}

}  // namespace

ExpertFormats expert_formats(const Checkpoint& checkpoint, const MoeLayerSpec& layer,
                             const LayerTensors& tensors, const Slice& intermediate) {
  ExpertFormats formats;
  for (int expert = 0; expert < layer.num_experts; ++expert) {
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !layer.gated()) continue;
      const auto decodes = [&](std::string_view why) {
        return ExpertFormats{{}, {}, fmt::format("expert {} {}: {}", expert, to_string(part), why)};
      };
      const QuantScheme* scheme = tensors.matrices(expert).schemes[expert_part_index(part)];
      if (scheme == nullptr) return decodes("is not quantized");
      std::optional<WeightFormat> found;
      try {
        found = coded_format(*scheme, describe(tensors, layer, expert, part));
      } catch (const Error& error) {  // the load reports it with all that belongs to it
        return decodes(error.what());
      }
      if (!found) return decodes("no kernel format holds it");
      if (has_activation_order(checkpoint, tensors, expert, part)) {
        return decodes("activation order");
      }
      const bool is_w2 = part == Part::kW2;
      if (is_w2) *found = shard_format(*found, intermediate.begin);
      if (!found->coded()) return decodes("the shard cuts groups too small");
      WeightFormat& format = is_w2 ? formats.w2 : formats.w13;
      if (!format.coded()) format = *found;
      if (format != *found) {
        return decodes(fmt::format("{}, others {}", to_string(*found), to_string(format)));
      }
    }
  }
  return formats;
}

}  // namespace gantry
