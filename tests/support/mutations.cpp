#include "tests/support/mutations.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "loader/expected_tensors.h"
#include "loader/tensor_geometry.h"

namespace gantry::test {
namespace {

using Tensor = MutableCheckpoint::Tensor;

// Names of the tensors of MoE layers that `wanted` accepts.
std::vector<std::string> names_of(const MoeModel& model, const MutableCheckpoint& checkpoint,
                                  const std::function<bool(const TensorRef&)>& wanted) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const ParsedName parsed = model.tensors().names().parse(name);
    if (parsed.name_class != NameClass::kMoe) continue;
    const MoeLayerSpec* layer = model.config().find_layer(parsed.ref.layer);
    if (layer == nullptr || parsed.ref.expert >= layer->num_experts) continue;
    if (parsed.ref.part != Part::kOther && wanted(parsed.ref)) names.push_back(name);
  }
  return names;
}

bool any(const TensorRef&) { return true; }
bool is_expert(const TensorRef& ref) { return is_expert_part(ref.part); }
bool is_expert_weight(const TensorRef& ref) {
  return is_expert(ref) && ref.kind == TensorKind::kWeight;
}

template <typename T>
const T& pick(const std::vector<T>& values, SeededRng& rng) {
  return values[static_cast<size_t>(rng.integer(0, static_cast<int64_t>(values.size()) - 1))];
}

// The elements of one part of one expert, wherever they stand.
struct Place {
  Tensor* tensor;
  FileView view;
  std::string name;

  std::byte* at(int64_t out, int64_t in) const {
    const int64_t element = view.offset + out * view.out_stride + in * view.in_stride;
    return tensor->bytes.data() + element * size_of(tensor->dtype);
  }
};

Place place_of(MutableCheckpoint& checkpoint, const MoeModel& model, const MoeLayerSpec& layer,
               int expert, Part part) {
  const TensorSource* source =
      model.tensors().layer(layer.layer).expert_source(expert, part, TensorKind::kWeight);
  const TensorPattern& pattern =
      model.config().family->tensors[static_cast<size_t>(source->ref.pattern)];
  return {&checkpoint.tensors.at(source->name),
          file_view(pattern, TensorKind::kWeight, layer, part, expert), source->name};
}

// Exchanges two equally large matrices; reports whether any byte changed.
bool swap_places(const Place& a, const Place& b) {
  bool changed = false;
  const auto size = static_cast<size_t>(size_of(a.tensor->dtype));
  for (int64_t o = 0; o < a.view.size.out; ++o) {
    for (int64_t i = 0; i < a.view.size.in; ++i) {
      changed = changed || std::memcmp(a.at(o, i), b.at(o, i), size) != 0;
      std::swap_ranges(a.at(o, i), a.at(o, i) + size, b.at(o, i));
    }
  }
  return changed;
}

Mutated drop(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, any), rng);
  checkpoint.tensors.erase(name);
  return {true, "drop " + name, -1, {}};
}

Mutated rename(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, any), rng);
  std::string altered = name;
  // One letter of the part that is ours: behind the layer's number.
  const size_t first = name.find('.', model.tensors().names().prefix().size());
  const auto at = static_cast<size_t>(
      rng.integer(static_cast<int64_t>(first) + 3, static_cast<int64_t>(name.size()) - 1));
  altered[at] = altered[at] == 'x' ? 'y' : 'x';
  if (checkpoint.tensors.contains(altered)) return {};
  checkpoint.tensors[altered] = checkpoint.tensors.at(name);
  checkpoint.tensors.erase(name);
  return {true, "rename " + name + " to " + altered, -1, {}};
}

// A second tensor for weights that are there already: another block spelling, or a base_layer
// infix.
Mutated duplicate(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, is_expert), rng);
  TensorRef ref = model.tensors().names().parse(name).ref;
  ref.base_layer = true;
  const std::string second = model.tensors().names().format(ref);
  if (checkpoint.tensors.contains(second)) return {};
  checkpoint.tensors[second] = checkpoint.tensors.at(name);
  return {true, "duplicate " + name + " as " + second, -1, {}};
}

Mutated swap_gate_and_up(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const MoeLayerSpec& layer = pick(model.config().layers, rng);
  if (!layer.gated()) return {};
  bool changed = false;
  for (int e = 0; e < layer.num_experts; ++e) {
    changed = swap_places(place_of(checkpoint, model, layer, e, Part::kW1),
                          place_of(checkpoint, model, layer, e, Part::kW3)) ||
              changed;
  }
  return {changed, "swap gate and up of layer " + std::to_string(layer.layer), -1, {}};
}

Mutated swap_gate_and_up_of_one(MutableCheckpoint& checkpoint, const MoeModel& model,
                                SeededRng& rng) {
  const MoeLayerSpec& layer = pick(model.config().layers, rng);
  if (!layer.gated()) return {};
  const auto e = static_cast<int>(rng.integer(0, layer.num_experts - 1));
  const bool changed = swap_places(place_of(checkpoint, model, layer, e, Part::kW1),
                                   place_of(checkpoint, model, layer, e, Part::kW3));
  return {changed, "swap gate and up of expert " + std::to_string(e), layer.layer, {e}};
}

Mutated swap_experts(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const MoeLayerSpec& layer = pick(model.config().layers, rng);
  if (layer.num_experts < 2) return {};
  const auto a = static_cast<int>(rng.integer(0, layer.num_experts - 2));
  const auto b = static_cast<int>(rng.integer(a + 1, layer.num_experts - 1));
  bool changed = false;
  for (const Part part : kExpertParts) {
    if (part == Part::kW3 && !layer.gated()) continue;
    changed = swap_places(place_of(checkpoint, model, layer, a, part),
                          place_of(checkpoint, model, layer, b, part)) ||
              changed;
  }
  return {changed,
          "swap experts " + std::to_string(a) + " and " + std::to_string(b),
          layer.layer,
          {a, b}};
}

Mutated swap_one_projection(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const MoeLayerSpec& layer = pick(model.config().layers, rng);
  if (layer.num_experts < 2) return {};
  const auto a = static_cast<int>(rng.integer(0, layer.num_experts - 2));
  const auto b = static_cast<int>(rng.integer(a + 1, layer.num_experts - 1));
  const Part part = rng.integer(0, 1) == 0 ? Part::kW1 : Part::kW2;
  const bool changed = swap_places(place_of(checkpoint, model, layer, a, part),
                                   place_of(checkpoint, model, layer, b, part));
  return {changed,
          "swap one projection of experts " + std::to_string(a) + " and " + std::to_string(b),
          layer.layer,
          {a, b}};
}

// Transposes the last two axes of a tensor, shape and data, as a careless converter would.
Mutated transpose(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, is_expert_weight), rng);
  Tensor& tensor = checkpoint.tensors.at(name);
  const size_t rank = tensor.shape.size();
  if (rank < 2) return {};
  const int64_t rows = tensor.shape[rank - 2];
  const int64_t cols = tensor.shape[rank - 1];
  const auto size = static_cast<size_t>(size_of(tensor.dtype));
  const std::vector<std::byte> old = tensor.bytes;
  const int64_t matrices = static_cast<int64_t>(old.size() / size) / (rows * cols);
  for (int64_t m = 0; m < matrices; ++m) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        std::memcpy(tensor.bytes.data() + static_cast<size_t>((m * cols + c) * rows + r) * size,
                    old.data() + static_cast<size_t>((m * rows + r) * cols + c) * size, size);
      }
    }
  }
  std::swap(tensor.shape[rank - 2], tensor.shape[rank - 1]);
  // Where the family's files exist in both orientations this is a valid file again, if it is done
  // to all of them and the shape tells; one alone is as good as the other.
  const bool both = model.config().family->name == "qwen3_vl_moe";
  return {!both && tensor.bytes != old, "transpose " + name, -1, {}};
}

// The right shape over data in the wrong order.
Mutated transpose_data(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const MoeLayerSpec& layer = pick(model.config().layers, rng);
  const auto e = static_cast<int>(rng.integer(0, layer.num_experts - 1));
  const Place place = place_of(checkpoint, model, layer, e, Part::kW2);
  const auto size = static_cast<size_t>(size_of(place.tensor->dtype));
  std::vector<std::byte> values;
  for (int64_t o = 0; o < place.view.size.out; ++o) {
    for (int64_t i = 0; i < place.view.size.in; ++i) {
      values.insert(values.end(), place.at(o, i), place.at(o, i) + size);
    }
  }
  size_t next = 0;
  for (int64_t i = 0; i < place.view.size.in; ++i) {
    for (int64_t o = 0; o < place.view.size.out; ++o, next += size) {
      std::memcpy(place.at(o, i), values.data() + next, size);
    }
  }
  return {true, "transposed data in " + place.name, layer.layer, {e}};
}

Mutated wrong_shape(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, any), rng);
  Tensor& tensor = checkpoint.tensors.at(name);
  if (tensor.shape.empty() || tensor.shape[0] < 2) return {};
  // One row less, as a file that was cut for another number of ranks has.
  const size_t row = tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]);
  --tensor.shape[0];
  tensor.bytes.resize(tensor.bytes.size() - row);
  return {true, "one row less in " + name, -1, {}};
}

Mutated wrong_dtype_label(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, is_expert), rng);
  Tensor& tensor = checkpoint.tensors.at(name);
  tensor.dtype = tensor.dtype == DType::kBF16 ? DType::kF16 : DType::kI16;
  return {true, "wrong dtype label on " + name, -1, {}};
}

// Every tensor relabelled: nothing is inconsistent, only the numbers are wrong.
Mutated wrong_dtype_everywhere(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng&) {
  bool changed = false;
  for (const std::string& name : names_of(model, checkpoint, is_expert)) {
    Tensor& tensor = checkpoint.tensors.at(name);
    if (tensor.dtype != DType::kBF16) continue;
    tensor.dtype = DType::kF16;
    changed = true;
  }
  return {changed, "bf16 labelled as f16 on all experts", -1, {}};
}

Mutated non_finite(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng,
                   bool infinite) {
  const std::string name = pick(names_of(model, checkpoint, any), rng);
  Tensor& tensor = checkpoint.tensors.at(name);
  if (tensor.dtype != DType::kBF16 && tensor.dtype != DType::kF32) return {};
  const auto size = static_cast<size_t>(size_of(tensor.dtype));
  const auto count = static_cast<int64_t>(tensor.bytes.size() / size);
  std::byte* element = tensor.bytes.data() + static_cast<size_t>(rng.integer(0, count - 1)) * size;
  // Little-endian: the top two bytes of an f32 are a bf16.
  const uint16_t bits = infinite ? 0x7f80 : 0x7fc1;
  std::memset(element, 0, size);
  std::memcpy(element + size - 2, &bits, 2);
  return {true, (infinite ? "infinity in " : "NaN in ") + name, -1, {}};
}

Mutated put_nan(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  return non_finite(checkpoint, model, rng, /*infinite=*/false);
}

Mutated put_infinity(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  return non_finite(checkpoint, model, rng, /*infinite=*/true);
}

Mutated extra_expert(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const auto names = names_of(
      model, checkpoint, [](const TensorRef& ref) { return is_expert(ref) && ref.expert >= 0; });
  if (names.empty()) return {};
  const std::string name = pick(names, rng);
  TensorRef ref = model.tensors().names().parse(name).ref;
  ref.expert = model.config().find_layer(ref.layer)->num_named_experts();
  const std::string extra = model.tensors().names().format(ref);
  checkpoint.tensors[extra] = checkpoint.tensors.at(name);
  return {true, "extra expert " + extra, -1, {}};
}

Mutated extra_tensor(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, is_expert), rng);
  checkpoint.tensors[name + "_scale"] = checkpoint.tensors.at(name);
  return {true, "extra tensor " + name + "_scale", -1, {}};
}

Mutated zero_tensor(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::string name = pick(names_of(model, checkpoint, is_expert_weight), rng);
  std::vector<std::byte>& bytes = checkpoint.tensors.at(name).bytes;
  std::fill(bytes.begin(), bytes.end(), std::byte{0});
  const TensorRef ref = model.tensors().names().parse(name).ref;
  Mutated mutated{true, "zeros in " + name, ref.layer, {}};
  if (ref.expert >= 0) mutated.experts = {ref.expert};
  return mutated;
}

Mutated negate_expert(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const MoeLayerSpec& layer = pick(model.config().layers, rng);
  const auto e = static_cast<int>(rng.integer(0, layer.num_experts - 1));
  const Place place = place_of(checkpoint, model, layer, e, Part::kW2);
  for (int64_t o = 0; o < place.view.size.out; ++o) {
    for (int64_t i = 0; i < place.view.size.in; ++i) {
      place.at(o, i)[size_of(place.tensor->dtype) - 1] ^= std::byte{0x80};
    }
  }
  return {true, "negated w2 of expert " + std::to_string(e), layer.layer, {e}};
}

Mutated shift_router(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const auto names = names_of(model, checkpoint, [](const TensorRef& ref) {
    return ref.part == Part::kRouter && ref.kind == TensorKind::kWeight;
  });
  const std::string name = pick(names, rng);
  Tensor& tensor = checkpoint.tensors.at(name);
  if (tensor.shape[0] < 2) return {};
  const auto row = static_cast<ptrdiff_t>(tensor.bytes.size()) / tensor.shape[0];
  std::rotate(tensor.bytes.begin(), tensor.bytes.begin() + row, tensor.bytes.end());
  return {true, "router rows shifted by one in " + name, -1, {}};
}

Mutated swap_shared_gate_and_up(MutableCheckpoint& checkpoint, const MoeModel& model,
                                SeededRng& rng) {
  const MoeLayerSpec& layer = pick(model.config().layers, rng);
  const LayerTensors& tensors = model.tensors().layer(layer.layer);
  const TensorSource* gate = tensors.single(Part::kSharedW1, TensorKind::kWeight);
  const TensorSource* up = tensors.single(Part::kSharedW3, TensorKind::kWeight);
  if (gate == nullptr || up == nullptr || gate == up) return {};
  std::swap(checkpoint.tensors.at(gate->name), checkpoint.tensors.at(up->name));
  return {true, "swap shared gate and up of layer " + std::to_string(layer.layer), -1, {}};
}

}  // namespace

int trials() {
  const char* text = std::getenv("GANTRY_TRIALS");
  return text == nullptr ? 1 : std::max(1, std::atoi(text));
}

const std::vector<Mutation>& mutations() {
  static const std::vector<Mutation> list = {
      {"drop", drop},
      {"rename", rename},
      {"duplicate", duplicate},
      {"swap_gate_and_up", swap_gate_and_up},
      {"swap_gate_and_up_of_one", swap_gate_and_up_of_one},
      {"swap_experts", swap_experts},
      {"swap_one_projection", swap_one_projection},
      {"transpose", transpose},
      {"transpose_data", transpose_data},
      {"wrong_shape", wrong_shape},
      {"wrong_dtype_label", wrong_dtype_label},
      {"wrong_dtype_everywhere", wrong_dtype_everywhere},
      {"nan", put_nan},
      {"infinity", put_infinity},
      {"extra_expert", extra_expert},
      {"extra_tensor", extra_tensor},
      {"zero_tensor", zero_tensor},
      {"negate_expert", negate_expert},
      {"shift_router", shift_router},
      {"swap_shared_gate_and_up", swap_shared_gate_and_up},
  };
  return list;
}

}  // namespace gantry::test
