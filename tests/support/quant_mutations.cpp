#include "tests/support/quant_mutations.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"
#include "loader/encodings/quant_scheme.h"
#include "loader/expected_tensors.h"

namespace gantry::test {
namespace {

using Tensor = MutableCheckpoint::Tensor;

/// A tensor of experts' matrices: its name and meaning.
struct Named {
  std::string name;
  TensorRef ref;
};

using Accepts = std::function<bool(const Named&, const Tensor&)>;

std::vector<Named> find(const MutableCheckpoint& checkpoint, const MoeModel& model,
                        const Accepts& accepts) {
  std::vector<Named> found;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const ParsedName parsed = model.tensors().names().parse(name);
    if (parsed.name_class != NameClass::kMoe || !is_expert_part(parsed.ref.part)) continue;
    Named named{name, parsed.ref};
    if (named.ref.kind == TensorKind::kWeight) named.ref.suffix = "weight";
    if (named.ref.kind != TensorKind::kBias && accepts(named, tensor)) {
      found.push_back(std::move(named));
    }
  }
  return found;
}

bool is_one_of(const std::string& suffix, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), suffix) != names.end();
}

// Scales of blocks, rows, columns or the whole.
bool is_scale(const Named& named, const Tensor&) {
  return is_one_of(named.ref.suffix,
                   {"scales", "weight_scale", "weight_scale_inv", "weight_scale_2",
                    "weight_global_scale", "pre_quant_scale", "weight.absmax", "SCB"});
}

bool is_grid(const Named& named, const Tensor& tensor) {
  const size_t rank = tensor.shape.size();
  return is_scale(named, tensor) && rank >= 2 && tensor.shape[rank - 1] > 1 &&
         tensor.shape[rank - 2] > 1;
}

bool is_zero_point(const Named& named, const Tensor&) {
  return is_one_of(named.ref.suffix, {"qzeros", "weight_zero_point"});
}

bool is_companion(const Named& named, const Tensor& tensor) {
  return is_scale(named, tensor) || is_zero_point(named, tensor);
}

bool is_codes(const Named& named, const Tensor&) {
  return is_one_of(named.ref.suffix, {"weight", "weight_packed", "qweight", "blocks"});
}

bool is_input_scale(const Named& named, const Tensor&) {
  return is_one_of(named.ref.suffix, {"input_scale", "input_global_scale"});
}

// Not the exporter's description of itself, which nothing is computed from.
bool is_not_a_description(const Named& named, const Tensor&) {
  return named.ref.suffix.find("quant_state") == std::string::npos;
}

/// A random one of the tensors that `accepts`, or none.
const Named* pick(const std::vector<Named>& tensors, SeededRng& rng) {
  if (tensors.empty()) return nullptr;
  return &tensors[static_cast<size_t>(rng.integer(0, static_cast<int64_t>(tensors.size()) - 1))];
}

/// A mutation of one random tensor: `change` says whether it did something.
std::function<Mutated(MutableCheckpoint&, const MoeModel&, SeededRng&)> of_one(
    const Accepts& accepts, std::function<bool(Tensor&, SeededRng&)> change) {
  return [accepts, change = std::move(change)](MutableCheckpoint& checkpoint, const MoeModel& model,
                                               SeededRng& rng) -> Mutated {
    const std::vector<Named> tensors = find(checkpoint, model, accepts);
    const Named* named = pick(tensors, rng);
    if (named == nullptr) return {};
    return {change(checkpoint.tensors.at(named->name), rng), named->name, -1, {}};
  };
}

/// The same done to every such tensor of every expert: nothing is inconsistent.
std::function<Mutated(MutableCheckpoint&, const MoeModel&, SeededRng&)> of_all(
    const Accepts& accepts, std::function<bool(Tensor&, SeededRng&)> change) {
  return [accepts, change = std::move(change)](MutableCheckpoint& checkpoint, const MoeModel& model,
                                               SeededRng& rng) -> Mutated {
    Mutated mutated;
    for (const Named& named : find(checkpoint, model, accepts)) {
      if (!change(checkpoint.tensors.at(named.name), rng)) continue;
      mutated.applied = true;
      mutated.what = named.name + " and all like it";
    }
    return mutated;
  };
}

Mutated drop_one(const Accepts& accepts, MutableCheckpoint& checkpoint, const MoeModel& model,
                 SeededRng& rng) {
  const std::vector<Named> tensors = find(checkpoint, model, accepts);
  const Named* named = pick(tensors, rng);
  if (named == nullptr) return {};
  checkpoint.tensors.erase(named->name);
  return {true, named->name, -1, {}};
}

Mutated drop_everywhere(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::vector<Named> tensors = find(checkpoint, model, is_companion);
  const Named* named = pick(tensors, rng);
  if (named == nullptr) return {};
  for (const Named& other : tensors) {
    if (other.ref.suffix == named->ref.suffix) checkpoint.tensors.erase(other.name);
  }
  return {true, "every " + named->ref.suffix, -1, {}};
}

bool swap_nibbles(Tensor& tensor, SeededRng&) {
  if (tensor.dtype != DType::kU8 && tensor.dtype != DType::kI32) return false;
  for (std::byte& byte : tensor.bytes)
    byte = byte >> 4 | byte << 4;
  return true;
}

// GPTQ's two formats differ in one word of the config: stored zero points less one, or not.
Mutated other_zero_point_format(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng&) {
  const QuantScheme scheme = read_quant_scheme(checkpoint.config, "config.json").value();
  if (find(checkpoint, model, [](const Named& named, const Tensor&) {
        return named.ref.suffix == "qzeros";
      }).empty()) {
    return {};
  }
  std::string& config = checkpoint.config;
  const std::string key = "\"checkpoint_format\"";
  if (const size_t at = config.find(key); at != std::string::npos) config[at + 1] = '_';
  const std::string section = "\"quantization_config\"";
  const size_t brace = config.find('{', config.find(section));
  std::string entry = key;
  entry += scheme.zero_minus_one ? ": \"gptq_v2\"," : ": \"gptq\",";
  config.insert(brace + 1, entry);
  return {true, "zero points as " + entry, -1, {}};
}

/// Two tensors that differ in one thing only, swapped: `other` makes the second one's meaning.
Mutated swap_with(const Accepts& accepts, const std::function<void(TensorRef&)>& other,
                  MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const std::vector<Named> tensors = find(checkpoint, model, accepts);
  const Named* named = pick(tensors, rng);
  if (named == nullptr) return {};
  TensorRef ref = named->ref;
  other(ref);
  const auto second = std::find_if(tensors.begin(), tensors.end(), [&](const Named& candidate) {
    return candidate.ref.layer == ref.layer && candidate.ref.expert == ref.expert &&
           candidate.ref.part == ref.part && candidate.ref.suffix == ref.suffix;
  });
  if (second == tensors.end() || second->name == named->name) return {};
  std::swap(checkpoint.tensors.at(named->name).bytes, checkpoint.tensors.at(second->name).bytes);
  return {true, named->name + " with " + second->name, -1, {}};
}

Mutated swap_gate_and_up_scales(MutableCheckpoint& checkpoint, const MoeModel& model,
                                SeededRng& rng) {
  const auto gate_or_up = [](const Named& named, const Tensor& tensor) {
    return is_companion(named, tensor) && named.ref.part != Part::kW2;
  };
  const auto other = [](TensorRef& ref) {
    ref.part = ref.part == Part::kW1 ? Part::kW3 : Part::kW1;
  };
  return swap_with(gate_or_up, other, checkpoint, model, rng);
}

Mutated swap_experts_scales(MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
  const int experts = model.config().layers[0].num_experts;
  return swap_with(
      is_companion, [&](TensorRef& ref) { ref.expert = (ref.expert + 1) % experts; }, checkpoint,
      model, rng);
}

// Shared tensors: the first two experts' slabs.
bool swap_slabs(Tensor& tensor, SeededRng&) {
  if (tensor.shape.size() != 3) return false;
  const auto slab = static_cast<ptrdiff_t>(tensor.bytes.size()) / tensor.shape[0];
  std::swap_ranges(tensor.bytes.begin(), tensor.bytes.begin() + slab, tensor.bytes.begin() + slab);
  return true;
}

// Gate and up where they share a tensor: the halves of each expert's slab.
bool swap_halves(Tensor& tensor, SeededRng&) {
  if (tensor.shape.size() != 3) return false;
  const auto slab = static_cast<ptrdiff_t>(tensor.bytes.size()) / tensor.shape[0];
  for (auto begin = tensor.bytes.begin(); begin != tensor.bytes.end(); begin += slab)
    std::swap_ranges(begin, begin + slab / 2, begin + slab / 2);
  return true;
}

bool is_shared_scale(const Named& named, const Tensor& tensor) {
  return named.ref.expert < 0 && is_scale(named, tensor);
}

bool is_fused_scale(const Named& named, const Tensor& tensor) {
  return named.ref.part == Part::kW13 && is_shared_scale(named, tensor);
}

float value_at(const Tensor& tensor, size_t i) {
  const auto byte =
      static_cast<uint8_t>(tensor.bytes[i * static_cast<size_t>(size_of(tensor.dtype))]);
  switch (tensor.dtype) {
    case DType::kF8E4M3:
      return e4m3_to_f32(byte);
    case DType::kU8:
    case DType::kF8E8M0:
      return e8m0_to_f32(byte);
    default:
      return load_as_f32(tensor.bytes.data(), tensor.dtype, static_cast<int64_t>(i));
  }
}

// The nearest code of an 8-bit format.
std::byte nearest_code(float (*value_of)(uint8_t), float value) {
  int best = 0;
  for (int code = 0; code < 256; ++code) {
    const float distance = std::fabs(value_of(static_cast<uint8_t>(code)) - value);
    if (distance < std::fabs(value_of(static_cast<uint8_t>(best)) - value)) best = code;
  }
  return static_cast<std::byte>(best);
}

void set_value(Tensor& tensor, size_t i, float value) {
  std::byte* target = tensor.bytes.data() + i * static_cast<size_t>(size_of(tensor.dtype));
  switch (tensor.dtype) {
    case DType::kF8E4M3:
      *target = std::isnan(value) ? std::byte{0x7f} : nearest_code(e4m3_to_f32, value);
      break;
    case DType::kU8:
    case DType::kF8E8M0:
      *target = std::isnan(value) ? std::byte{0xff} : nearest_code(e8m0_to_f32, value);
      break;
    default:
      convert_from_f32(&value, 1, tensor.dtype, target);
  }
}

size_t num_elements(const Tensor& tensor) {
  return tensor.bytes.size() / static_cast<size_t>(size_of(tensor.dtype));
}

// Divided instead of multiplied, or the other way round.
bool invert(Tensor& tensor, SeededRng&) {
  for (size_t i = 0; i < num_elements(tensor); ++i)
    set_value(tensor, i, 1.0F / value_at(tensor, i));
  return true;
}

/// Puts a value into a random element.
std::function<bool(Tensor&, SeededRng&)> put(float (*value_of)(float)) {
  return [value_of](Tensor& tensor, SeededRng& rng) {
    const auto i =
        static_cast<size_t>(rng.integer(0, static_cast<int64_t>(num_elements(tensor)) - 1));
    set_value(tensor, i, value_of(value_at(tensor, i)));
    return true;
  };
}

float nan_of(float) { return std::numeric_limits<float>::quiet_NaN(); }
float zero_of(float) { return 0.0F; }
float negative_of(float value) { return -value; }
float one_of(float) { return 1.0F; }

bool has_sign(const Named& named, const Tensor& tensor) {
  return is_scale(named, tensor) && tensor.dtype != DType::kU8 && tensor.dtype != DType::kF8E8M0;
}

// Transposes the data of the last two axes; the shape is the caller's.
void transpose_data(Tensor& tensor) {
  const auto cols = static_cast<size_t>(tensor.shape[tensor.shape.size() - 1]);
  const auto rows = static_cast<size_t>(tensor.shape[tensor.shape.size() - 2]);
  const auto size = static_cast<size_t>(size_of(tensor.dtype));
  const std::vector<std::byte> old = tensor.bytes;
  for (size_t m = 0; m < old.size() / size; m += rows * cols) {
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < cols; ++c) {
        std::memcpy(tensor.bytes.data() + (m + c * rows + r) * size,
                    old.data() + (m + r * cols + c) * size, size);
      }
    }
  }
}

bool transpose_under_its_shape(Tensor& tensor, SeededRng&) {
  transpose_data(tensor);
  return true;
}

bool transpose_with_its_shape(Tensor& tensor, SeededRng&) {
  transpose_data(tensor);
  std::swap(tensor.shape[tensor.shape.size() - 1], tensor.shape[tensor.shape.size() - 2]);
  return true;
}

bool cut_a_row(Tensor& tensor, SeededRng&) {
  if (tensor.shape.empty() || tensor.shape[0] < 2) return false;
  tensor.bytes.resize(tensor.bytes.size() -
                      tensor.bytes.size() / static_cast<size_t>(tensor.shape[0]));
  --tensor.shape[0];
  return true;
}

// Another dtype of the same size: nothing but the label is wrong.
bool relabel(Tensor& tensor, SeededRng&) {
  constexpr std::array<std::pair<DType, DType>, 10> kOthers = {{{DType::kBF16, DType::kF16},
                                                                {DType::kF16, DType::kBF16},
                                                                {DType::kF32, DType::kI32},
                                                                {DType::kI32, DType::kF32},
                                                                {DType::kU8, DType::kI8},
                                                                {DType::kI8, DType::kU8},
                                                                {DType::kF8E4M3, DType::kF8E5M2},
                                                                {DType::kF8E5M2, DType::kF8E4M3},
                                                                {DType::kF8E8M0, DType::kF8E4M3},
                                                                {DType::kI64, DType::kU64}}};
  const auto* other = std::find_if(kOthers.begin(), kOthers.end(),
                                   [&](const auto& pair) { return pair.first == tensor.dtype; });
  if (other == kOthers.end()) return false;
  tensor.dtype = other->second;
  return true;
}

// Off by one along an axis of the grid: groups of a row, or rows.
bool roll(Tensor& tensor, int64_t run) {
  const auto run_bytes = static_cast<ptrdiff_t>(run) * size_of(tensor.dtype);
  const auto step = static_cast<ptrdiff_t>(tensor.shape.back()) * size_of(tensor.dtype);
  const auto total = static_cast<ptrdiff_t>(tensor.bytes.size());
  if (run == 1) {  // within each row of the last axis
    for (ptrdiff_t row = 0; row < total; row += step) {
      const auto begin = tensor.bytes.begin() + row;
      std::rotate(begin, begin + run_bytes, begin + step);
    }
  } else {
    std::rotate(tensor.bytes.begin(), tensor.bytes.begin() + run_bytes, tensor.bytes.end());
  }
  return true;
}

bool roll_columns(Tensor& tensor, SeededRng&) { return roll(tensor, 1); }

bool roll_rows(Tensor& tensor, SeededRng&) {
  return tensor.shape.back() > 1 && roll(tensor, tensor.shape.back());
}

bool is_rollable(const Named& named, const Tensor& tensor) {
  return is_companion(named, tensor) && !tensor.shape.empty();
}

}  // namespace

const std::vector<QuantMutation>& quant_mutations() {
  using Apply = std::function<Mutated(MutableCheckpoint&, const MoeModel&, SeededRng&)>;
  const auto drop = [](const Accepts& accepts) -> Apply {
    return [accepts](MutableCheckpoint& checkpoint, const MoeModel& model, SeededRng& rng) {
      return drop_one(accepts, checkpoint, model, rng);
    };
  };
  static const std::vector<QuantMutation> list = {
      {"drop_one", true, drop(is_companion)},
      {"drop_everywhere", false, drop_everywhere},
      {"swap_nibbles", false, of_one(is_codes, swap_nibbles)},
      {"swap_nibbles_everywhere", false, of_all(is_codes, swap_nibbles)},
      {"zero_point_format", false, other_zero_point_format},
      {"swap_gate_and_up_scales", false, swap_gate_and_up_scales},
      {"swap_halves_of_fused_scales", false, of_one(is_fused_scale, swap_halves)},
      {"swap_experts_scales", false, swap_experts_scales},
      {"swap_slabs_of_scales", false, of_one(is_shared_scale, swap_slabs)},
      {"invert_scale", false, of_one(is_scale, invert)},
      {"transpose_scales", false, of_one(is_grid, transpose_under_its_shape)},
      {"transpose_scales_and_shape", false, of_one(is_grid, transpose_with_its_shape)},
      {"cut_a_row", true, of_one(is_not_a_description, cut_a_row)},
      {"other_dtype", false, of_one(is_not_a_description, relabel)},
      {"nan_scale", true, of_one(is_scale, put(nan_of))},
      {"zero_scale", false, of_one(is_scale, put(zero_of))},
      {"negative_scale", false, of_one(has_sign, put(negative_of))},
      {"roll_scales_along_a_row", false, of_one(is_rollable, roll_columns)},
      {"roll_rows_of_scales", false, of_one(is_rollable, roll_rows)},
      {"zero_input_scale", true, of_one(is_input_scale, put(zero_of))},
      {"nan_input_scale", true, of_one(is_input_scale, put(nan_of))},
      {"negative_input_scale", true, of_one(is_input_scale, put(negative_of))},
      {"uncalibrated_input_scales", true, of_all(is_input_scale, put(one_of))},
      {"drop_input_scale", true, drop(is_input_scale)},
  };
  return list;
}

}  // namespace gantry::test
