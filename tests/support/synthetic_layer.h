#pragma once

// A tiny MoE layer on disk whose every element says where it belongs, in any spelling of the family
// table. What an element means is worked out here from the file's index alone, in the opposite
// direction of loader/tensor_geometry.cpp, so that neither can share the other's mistakes.

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/float_convert.h"
#include "loader/expected_tensors.h"
#include "loader/moe_config.h"
#include "loader/safetensors_writer.h"

namespace gantry::test {

/// One element of a layer. `expert` is num_experts for the shared experts.
struct Element {
  int64_t expert = 0;
  Part part = Part::kW1;  ///< kW1, kW3 or kW2, of routed and of shared experts
  TensorKind kind = TensorKind::kWeight;
  int64_t out = 0;
  int64_t in = 0;

  friend bool operator==(const Element&, const Element&) = default;
};

/// The element at `index` of a tensor of this pattern. `expert` is the id in the tensor's name.
inline Element element_at(const TensorPattern& pattern, TensorKind kind, const MoeLayerSpec& spec,
                          int64_t expert, int64_t index) {
  const bool shared = is_shared_part(pattern.part);
  const bool down = pattern.part == Part::kW2 || pattern.part == Part::kSharedW2;
  const bool both = pattern.part == Part::kW13 || pattern.part == Part::kSharedW13;
  const bool up = pattern.part == Part::kW3 || pattern.part == Part::kSharedW3;
  const int64_t inner = shared ? spec.shared.intermediate_size : spec.intermediate_size;
  const int64_t hidden = shared ? spec.hidden_size : spec.expert_hidden_size;
  const int64_t outs = down ? hidden : both ? 2 * inner : inner;
  const int64_t ins = kind == TensorKind::kBias ? 1 : down ? inner : hidden;

  Element e{.expert = shared ? spec.num_experts : expert, .kind = kind};
  if (pattern.stacking == Stacking::kStacked3d || pattern.stacking == Stacking::kStacked2d) {
    e.expert = index / (outs * ins);
    index %= outs * ins;
  }
  const bool out_in = pattern.orientation == Orientation::kOutIn;
  e.out = out_in ? index / ins : index % outs;
  e.in = out_in ? index % ins : index / outs;
  e.part = down ? Part::kW2 : up ? Part::kW3 : Part::kW1;
  if (both && pattern.gate_up == GateUp::kInterleaved) {
    e.part = e.out % 2 == 0 ? Part::kW1 : Part::kW3;
    e.out /= 2;
  } else if (both) {
    e.part = e.out < inner ? Part::kW1 : Part::kW3;
    e.out %= inner;
  }
  return e;
}

/// The value of an element: finite, exact in `dtype`, and of no other element of a layer as small
/// as SyntheticLayer's.
inline float element_value(const Element& e, DType dtype) {
  constexpr int64_t kSide = 16;  // no size of the layer is larger
  const int64_t part = e.part == Part::kW1 ? 0 : e.part == Part::kW3 ? 1 : 2;
  const int64_t row = (e.expert * 3 + part) * kSide + e.out;
  // Biases take a column that no weight has.
  const auto code =
      static_cast<uint32_t>(row * kSide + (e.kind == TensorKind::kBias ? kSide - 1 : e.in));
  switch (dtype) {
    case DType::kBF16:
      return bf16_to_f32(static_cast<uint16_t>(0x3000 + code));
    case DType::kF16:
      return f16_to_f32(static_cast<uint16_t>(0x0400 + code));
    default:
      return 1.0F + static_cast<float>(code);
  }
}

struct SyntheticTensor {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

inline int64_t num_elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape)
    count *= size;
  return count;
}

/// A stack of one layer in the spelling of the given patterns.
struct SyntheticLayer {
  MoeModelConfig config;
  DType dtype = DType::kBF16;
  std::vector<SyntheticTensor> tensors;

  [[nodiscard]] MoeLayerSpec& spec() { return config.layers[0]; }
  [[nodiscard]] const MoeLayerSpec& spec() const { return config.layers[0]; }

  /// 5 experts, H = 6, I = 7 (no rank count but 1 and 7 divides it), shared I = 9 if there are any.
  static SyntheticLayer create(std::string_view model_type, DType dtype) {
    SyntheticLayer layer;
    layer.dtype = dtype;
    layer.config.family = find_family(model_type);
    layer.config.model_type = std::string(model_type);
    layer.config.num_layers = 1;
    MoeLayerSpec spec;
    spec.num_experts = 5;
    spec.hidden_size = 6;
    spec.expert_hidden_size = 6;
    spec.intermediate_size = 7;
    spec.routing.num_experts = 5;
    spec.routing.top_k = 2;
    layer.config.layers.push_back(spec);
    return layer;
  }

  /// The index of the family's pattern of that name and orientation.
  [[nodiscard]] int find_pattern(std::string_view name, Orientation orientation) const {
    const auto& patterns = config.family->tensors;
    for (size_t p = 0; p < patterns.size(); ++p) {
      if (patterns[p].name == name && patterns[p].orientation == orientation) {
        return static_cast<int>(p);
      }
    }
    throw Error(ErrorCode::kInternal, "no pattern " + std::string(name));
  }

  /// Adds every tensor of one pattern and kind: one, or one an expert.
  void add(int pattern_index, TensorKind kind) {
    const TensorPattern& pattern = config.family->tensors[static_cast<size_t>(pattern_index)];
    const bool per_expert = pattern.stacking == Stacking::kPerExpert;
    const NameMap names(*config.family, "model.");
    for (int expert = 0; expert < (per_expert ? spec().num_experts : 1); ++expert) {
      TensorRef ref;
      ref.layer = 0;
      ref.expert = per_expert ? expert : -1;
      ref.part = pattern.part;
      ref.kind = kind;
      ref.pattern = pattern_index;
      SyntheticTensor tensor{.name = names.format(ref), .dtype = dtype, .shape = {}, .values = {}};
      tensor.shape = shape_of(pattern, kind);
      const int64_t count = num_elements(tensor.shape);
      for (int64_t i = 0; i < count; ++i) {
        const bool coded = is_expert_part(pattern.part) || is_shared_part(pattern.part);
        tensor.values.push_back(
            coded ? element_value(element_at(pattern, kind, spec(), expert, i), dtype)
                  : static_cast<float>(i % 128));
      }
      tensors.push_back(std::move(tensor));
    }
  }

  /// Adds the first pattern of a part that is one tensor: the router, a correction bias ...
  void add_single(Part part, TensorKind kind = TensorKind::kWeight) {
    const auto& patterns = config.family->tensors;
    for (size_t p = 0; p < patterns.size(); ++p) {
      if (patterns[p].part == part) return add(static_cast<int>(p), kind);
    }
    throw Error(ErrorCode::kInternal, "the family has no such tensor");
  }

  /// Shapes as the families' files have them.
  [[nodiscard]] std::vector<int64_t> shape_of(const TensorPattern& pattern, TensorKind kind) const {
    const MoeLayerSpec& s = spec();
    const int64_t i =
        is_shared_part(pattern.part) ? s.shared.intermediate_size : s.intermediate_size;
    const int64_t h = is_shared_part(pattern.part) ? s.hidden_size : s.expert_hidden_size;
    std::vector<int64_t> matrix;
    switch (pattern.part) {
      case Part::kW1:
      case Part::kW3:
      case Part::kSharedW1:
      case Part::kSharedW3:
        matrix = {i, h};
        break;
      case Part::kW13:
      case Part::kSharedW13:
        matrix = {2 * i, h};
        break;
      case Part::kW2:
      case Part::kSharedW2:
        matrix = {h, i};
        break;
      case Part::kRouter:
        matrix = {s.routing.num_experts, s.hidden_size};
        break;
      default:  // correction bias and other vectors of the router
        return {s.routing.num_experts};
    }
    if (kind == TensorKind::kBias) matrix.pop_back();
    if (matrix.size() == 2 && pattern.orientation == Orientation::kInOut) {
      std::swap(matrix[0], matrix[1]);
    }
    if (pattern.stacking == Stacking::kStacked3d) matrix.insert(matrix.begin(), s.num_experts);
    if (pattern.stacking == Stacking::kStacked2d) matrix[0] *= s.num_experts;
    return matrix;
  }

  [[nodiscard]] SyntheticTensor& find(std::string_view name) {
    for (SyntheticTensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    throw Error(ErrorCode::kInternal, "no tensor " + std::string(name));
  }

  /// Writes config.json (of no meaning: `config` is used as it is) and model.safetensors.
  void write(const std::filesystem::path& directory) const {
    std::filesystem::create_directories(directory);
    write_text_file(directory / "config.json", R"({"model_type":"synthetic"})");
    std::vector<TensorInfo> infos;
    for (const SyntheticTensor& tensor : tensors) {
      TensorInfo info;
      info.name = tensor.name;
      info.dtype = tensor.dtype;
      info.shape = tensor.shape;
      infos.push_back(std::move(info));
    }
    SafetensorsWriter writer(directory / "model.safetensors", std::move(infos), {{"format", "pt"}});
    for (const SyntheticTensor& tensor : tensors)
      writer.write(tensor.name, 0, bytes_of(tensor));
    writer.finish();
  }

 private:
  static std::vector<std::byte> bytes_of(const SyntheticTensor& tensor) {
    const auto count = static_cast<int64_t>(tensor.values.size());
    std::vector<std::byte> bytes(static_cast<size_t>(count * size_of(tensor.dtype)));
    if (is_plain_float(tensor.dtype)) {
      convert_from_f32(tensor.values.data(), count, tensor.dtype, bytes.data());
    } else if (tensor.dtype == DType::kI64) {
      for (size_t i = 0; i < tensor.values.size(); ++i) {
        const auto value = static_cast<int64_t>(tensor.values[i]);
        std::memcpy(bytes.data() + i * 8, &value, 8);
      }
    } else if (tensor.dtype == DType::kI32) {
      for (size_t i = 0; i < tensor.values.size(); ++i) {
        const auto value = static_cast<int32_t>(tensor.values[i]);
        std::memcpy(bytes.data() + i * 4, &value, 4);
      }
    }
    return bytes;  // zeros in the dtypes that the loader must refuse
  }
};

}  // namespace gantry::test
