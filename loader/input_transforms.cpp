#include "loader/input_transforms.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/encoded_reader.h"
#include "loader/expected_tensors.h"

namespace gantry {
namespace {

class TransformReader {
 public:
  TransformReader(const Checkpoint& checkpoint, const FamilySpec& family, const MoeLayerSpec& layer,
                  const LayerTensors& tensors)
      : checkpoint_(checkpoint), family_(family), layer_(layer), tensors_(tensors) {}

  [[nodiscard]] bool has(int expert, Part part, std::string_view suffix) const {
    return find(expert, part, suffix) != nullptr;
  }

  // Inputs sorted by their groups; empty where they are in order.
  // @throws Error where the groups are not those of a matrix with activation order
  std::vector<int32_t> order(int expert, Part part) {
    const TensorSource* source = find(expert, part, "g_idx");
    if (source == nullptr) source = find(expert, part, "weight_g_idx");
    if (source == nullptr) return {};
    const EncodedTensor tensor = read(*source, expert, part, DType::kI32);
    std::vector<int32_t> groups(static_cast<size_t>(tensor.num_elements()));
    std::memcpy(groups.data(), tensor.data, groups.size() * sizeof(int32_t));
    const QuantScheme* scheme = tensors_.matrices(expert).schemes[expert_part_index(part)];
    const auto count = static_cast<int64_t>(groups.size());
    const int64_t group = scheme->group_size > 0 ? scheme->group_size : count;
    std::vector<int32_t> order(groups.size());
    std::iota(order.begin(), order.end(), 0);
    const auto group_of = [&](int32_t input) { return groups[static_cast<size_t>(input)]; };
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return group_of(a) < group_of(b); });
    for (int64_t i = 0; i < count; ++i) {
      GANTRY_CHECK(group_of(order[static_cast<size_t>(i)]) == i / group, ErrorCode::kUnsupported,
                   "{}: groups are not of {} inputs each", source->name, group);
    }
    if (std::is_sorted(order.begin(), order.end())) order.clear();
    return order;
  }

  std::vector<float> factors(int expert, Part part) {
    const TensorSource* source = find(expert, part, "pre_quant_scale");
    if (source == nullptr) return {};
    const EncodedTensor tensor = read(*source, expert, part, source->tensor->info.dtype);
    GANTRY_CHECK(is_plain_float(tensor.dtype), ErrorCode::kUnsupported, "{}: {}", source->name,
                 to_string(tensor.dtype));
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    convert_to_f32(tensor.data, tensor.dtype, tensor.num_elements(), values.data());
    return values;
  }

 private:
  [[nodiscard]] const TensorSource* find(int expert, Part part, std::string_view suffix) const {
    const auto& encoded = tensors_.matrices(expert).encoded[expert_part_index(part)];
    const auto found = encoded.find(std::string(suffix));
    return found == encoded.end() ? nullptr : found->second;
  }

  // One value an input.
  EncodedTensor read(const TensorSource& source, int expert, Part part, DType dtype) {
    scratch_.rewind();
    EncodedReader reader(checkpoint_, family_, layer_, expert, part, scratch_);
    EncodedTensor tensor = reader.read(source);
    const int64_t inputs = part_size(part, layer_).in;
    GANTRY_CHECK(tensor.dtype == dtype && tensor.shape == std::vector<int64_t>{inputs},
                 ErrorCode::kUnsupported, "{}: expected [{}] {}, found {} {}", source.name, inputs,
                 to_string(dtype), shape_text(tensor.shape), to_string(tensor.dtype));
    return tensor;
  }

  const Checkpoint& checkpoint_;
  const FamilySpec& family_;
  const MoeLayerSpec& layer_;
  const LayerTensors& tensors_;
  ReadScratch scratch_;
};

// @throws Error kUnsupported where gate and up have inputs of their own
ExpertTransform read_expert(TransformReader& reader, const MoeLayerSpec& layer, int expert) {
  ExpertTransform transform{.x_order = reader.order(expert, Part::kW1),
                            .mid_order = reader.order(expert, Part::kW2),
                            .x_factors = reader.factors(expert, Part::kW1),
                            .mid_factors = reader.factors(expert, Part::kW2)};
  if (layer.gated()) {
    GANTRY_CHECK(reader.order(expert, Part::kW3) == transform.x_order, ErrorCode::kUnsupported,
                 "expert {}: the activation orders of w1 and w3 differ", expert);
    GANTRY_CHECK(reader.factors(expert, Part::kW3) == transform.x_factors, ErrorCode::kUnsupported,
                 "expert {}: the pre_quant_scales of w1 and w3 differ", expert);
  }
  return transform;
}

template <typename T>
void copy_section(std::byte* slot, const SlotSection& section, const std::vector<T>& values) {
  std::memcpy(slot + section.offset, values.data(), values.size() * sizeof(T));
}

}  // namespace

LayerTransforms read_transforms(const Checkpoint& checkpoint, const FamilySpec& family,
                                const MoeLayerSpec& layer, const LayerTensors& tensors) {
  LayerTransforms transforms;
  TransformReader reader(checkpoint, family, layer, tensors);
  try {
    for (int e = 0; e < layer.num_experts; ++e) {
      transforms.experts.push_back(read_expert(reader, layer, e));
      const ExpertTransform& found = transforms.experts.back();
      transforms.sections.order |= !found.x_order.empty();
      transforms.sections.factors |= !found.x_factors.empty();
      transforms.sections.mid_factors |= !found.mid_factors.empty();
      transforms.sections.mid_order |= !found.mid_order.empty();
      if (!found.mid_order.empty() && tensors.expert_bias) {
        transforms.reason = fmt::format("expert {}: activation order of w2 beside biases", e);
        return transforms;
      }
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kIo) throw;
    transforms.reason = error.what();
  }
  return transforms;
}

int64_t transform_bytes(const SlotLayout& layout) noexcept {
  return layout.x_order.bytes + layout.x_factors.bytes + layout.mid_factors.bytes +
         layout.mid_order.bytes;
}

void run_transform_job(const TransformJob& job, const SlotLayout& layout, LoadLedger& ledger) {
  const ExpertTransform& from = *job.transform;
  std::vector<int32_t> order = from.x_order;
  if (order.empty()) {  // others have one
    order.resize(static_cast<size_t>(layout.hidden_size));
    std::iota(order.begin(), order.end(), 0);
  }
  std::vector<float> x_factors(order.size(), 1.0F);
  for (size_t k = 0; k < order.size() && !from.x_factors.empty(); ++k)
    x_factors[k] = from.x_factors[static_cast<size_t>(order[k])];
  std::vector<int32_t> mid_order(static_cast<size_t>(layout.intermediate_size));
  std::vector<float> mid_factors(mid_order.size(), 1.0F);
  for (size_t j = 0; j < mid_order.size(); ++j) {
    const size_t k = static_cast<size_t>(job.intermediate.begin) + j;
    mid_order[j] = from.mid_order.empty() ? static_cast<int32_t>(k) : from.mid_order[k];
    if (!from.mid_factors.empty()) {
      mid_factors[j] = from.mid_factors[static_cast<size_t>(mid_order[j])];
    }
  }
  for (const TransformJob::Destination& destination : job.destinations) {
    if (destination.slot != nullptr) {
      if (layout.transforms.order) copy_section(destination.slot, layout.x_order, order);
      if (layout.transforms.factors) copy_section(destination.slot, layout.x_factors, x_factors);
      if (layout.transforms.mid_factors) {
        copy_section(destination.slot, layout.mid_factors, mid_factors);
      }
      if (layout.transforms.mid_order) copy_section(destination.slot, layout.mid_order, mid_order);
    }
    ledger.record(destination.ledger_id, 0, 1);
  }
}

}  // namespace gantry
