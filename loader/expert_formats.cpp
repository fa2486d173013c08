#include "loader/expert_formats.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "loader/encoded_reader.h"
#include "loader/encodings/common_format.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/expected_tensors.h"
#include "loader/input_scale_job.h"

namespace gantry {
namespace {

// What the GPU's kernels have formats for (kernels/cuda/device_matrix.cpp).
bool gpu_reads(const WeightFormat& format) {
  constexpr WeightElement kElements[] = {WeightElement::kE4M3, WeightElement::kInt8,
                                         WeightElement::kInt4, WeightElement::kE2M1};
  return (!format.grouped() || format.group % 16 == 0) && !format.minimums &&
         format.super_group == 0 &&
         std::ranges::find(kElements, format.element) != std::end(kElements);
}

// Neurons that ranks share as one: 16, the outputs of a panel, where there are as many for each
// rank, so that groups are cut into 16 at least; 8 where only that divides them evenly, or they are
// few. Follows from the sizes alone.
int64_t cut_unit(int64_t intermediate, int tp_size) {
  for (const int64_t unit : {16, 8}) {
    const bool others_even =
        unit == 16 && intermediate % (16 * tp_size) != 0 && intermediate % (8 * tp_size) == 0;
    if (!others_even && (intermediate + unit - 1) / unit >= tp_size) return unit;
  }
  return 1;
}

class FormatFinder {
 public:
  FormatFinder(const MoeLayerSpec& layer, const LayerTensors& tensors, const FormatRequest& request)
      : layer_(layer), tensors_(tensors), request_(request) {}

  // Adds one matrix, until one does not fit.
  void add(int expert, Part part) {
    if (!formats_.reason.empty()) return;
    const std::string why = reason_of(expert, part);
    if (why.empty()) return;
    const std::string name = std::string(to_string(part));
    formats_.reason = expert < 0 ? fmt::format("{}: {}", name, why)
                                 : fmt::format("expert {} {}: {}", expert, name, why);
  }

  // Cuts w2 for the ranks.
  ExpertFormats finish(int64_t intermediate) {
    const ParallelConfig& parallel = request_.parallel;
    formats_.cut_unit = cut_unit(intermediate, parallel.tp_size);
    formats_.whole_w2 = formats_.w2;
    if (!formats_.reason.empty()) return formats_;
    for (int rank = 0; rank < parallel.tp_size; ++rank) {
      const Slice slice = split_in_units(intermediate, formats_.cut_unit, parallel.tp_size, rank);
      const WeightFormat format = shard_format(formats_.whole_w2, slice.begin);
      if (!format.coded() || (request_.gpu && !gpu_reads(format))) {
        formats_.reason = fmt::format("{} tensor parallel ranks cut groups of {} too small",
                                      parallel.tp_size, formats_.whole_w2.group);
        return formats_;
      }
      if (rank == parallel.tp_rank()) formats_.w2 = format;
    }
    return formats_;
  }

 private:
  EncodedMatrix describe(int expert, Part part) const {
    EncodedMatrix matrix;
    matrix.size = part_size(part, layer_);
    for (const TensorSource* source : encoded_sources(tensors_, expert, part)) {
      const TensorInfo& info = source->tensor->info;
      matrix.tensors.emplace(suffix_of(*source), EncodedTensor{source->name, info.dtype, info.shape,
                                                               nullptr, info.block_type});
    }
    return matrix;
  }

  std::string reason_of(int expert, Part part) {
    const QuantScheme* scheme = tensors_.matrices(expert).schemes[expert_part_index(part)];
    if (scheme == nullptr) return "is not quantized";
    std::optional<WeightFormat> found;
    try {
      found = coded_format(*scheme, describe(expert, part));
    } catch (const Error& error) {  // the load reports it with all that belongs to it
      return error.what();
    }
    if (!found) return "no kernel format holds it";
    if (request_.gpu && !gpu_reads(*found)) return fmt::format("{} on a GPU", to_string(*found));
    WeightFormat& format =
        part == Part::kW2 || part == Part::kSharedW2 ? formats_.w2 : formats_.w13;
    if (!format.coded()) format = *found;
    if (format == *found) return "";
    const auto common = request_.gpu ? std::nullopt : common_format(format, *found);
    if (!common) return fmt::format("{}, others {}", to_string(*found), to_string(format));
    format = *common;
    return "";
  }

  const MoeLayerSpec& layer_;
  const LayerTensors& tensors_;
  const FormatRequest& request_;
  ExpertFormats formats_;
};

// Why slots cannot have these transforms, or empty.
std::string refusal_of(const LayerTransforms& transforms, const MoeLayerSpec& layer,
                       const LayerTensors& tensors, const FormatRequest& request) {
  if (!transforms.reason.empty()) return transforms.reason;
  const InputTransforms& sections = transforms.sections;
  if (request.gpu && sections != InputTransforms{}) {
    return "activation order or pre_quant_scale on a GPU";
  }
  const bool ordered = sections.order || sections.mid_order;
  // Groups of inputs that are quantized together are neighbours in the file's order.
  if (ordered && layer_activations(tensors, layer).format.group_size > 0) {
    return "activation order beside inputs that are quantized in groups";
  }
  return "";
}

}  // namespace

ExpertFormats expert_formats(const Checkpoint& checkpoint, const FamilySpec& family,
                             const MoeLayerSpec& layer, const LayerTensors& tensors,
                             const FormatRequest& request) {
  FormatFinder finder(layer, tensors, request);
  for (int expert = 0; expert < layer.num_experts; ++expert) {
    for (const Part part : kExpertParts) {
      if (part != Part::kW3 || layer.gated()) finder.add(expert, part);
    }
  }
  ExpertFormats formats = finder.finish(layer.intermediate_size);
  if (!formats.reason.empty()) return formats;
  auto transforms =
      std::make_shared<const LayerTransforms>(read_transforms(checkpoint, family, layer, tensors));
  formats.reason = refusal_of(*transforms, layer, tensors, request);
  if (formats.reason.empty()) formats.transforms = std::move(transforms);
  return formats;
}

ExpertFormats shared_formats(const MoeLayerSpec& layer, const LayerTensors& tensors,
                             const FormatRequest& request) {
  FormatFinder finder(layer, tensors, request);
  for (const Part part : kExpertParts) {
    if (part == Part::kW3 && !is_gated(layer.shared.activation.kind)) continue;
    finder.add(-1, shared_part(part));
  }
  ExpertFormats formats = finder.finish(layer.shared.intermediate_size);
  // They are one more expert, but without sections for these.
  for (const auto& encoded : tensors.shared.encoded) {
    for (const char* suffix : {"g_idx", "weight_g_idx", "pre_quant_scale"}) {
      if (formats.reason.empty() && encoded.contains(suffix)) {
        formats.reason = fmt::format("{} of shared experts", suffix);
      }
    }
  }
  return formats;
}

}  // namespace gantry
