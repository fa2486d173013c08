#include "tests/support/decoded_weights.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/encodings/scale_grid.h"
#include "loader/expected_tensors.h"
#include "loader/tensor_geometry.h"

namespace gantry::test {
namespace {

MatrixSize size_of_part(Part part, const MoeLayerSpec& layer) {
  if (part != Part::kW13) return part_size(part, layer);
  const MatrixSize half = part_size(Part::kW1, layer);
  return {2 * half.out, half.in};
}

std::vector<float> decode(const QuantScheme& scheme, const EncodedMatrix& matrix) {
  const auto& [suffix, only] = *matrix.tensors.begin();
  if (matrix.tensors.size() == 1 && is_plain_float(only.dtype)) return scale_values(only);
  std::vector<float> weights = decode_matrix(scheme, matrix);
  if (const EncodedTensor* columns = matrix.find("pre_quant_scale")) {
    const std::vector<float> factors = scale_values(*columns);
    for (size_t i = 0; i < weights.size(); ++i)
      weights[i] *= factors[i % factors.size()];
  }
  return weights;
}

// The experts' matrices as tensors; false if a shared tensor has no slab for each expert.
bool gather(const MutableCheckpoint& checkpoint, const TensorMap& tensors,
            const MoeModelConfig& intact,
            std::map<std::tuple<int, int, Part>, EncodedMatrix>& matrices) {
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const ParsedName parsed = tensors.names().parse(name);
    const TensorRef& ref = parsed.ref;
    const MoeLayerSpec* layer = intact.find_layer(ref.layer);
    if (parsed.name_class != NameClass::kMoe || layer == nullptr || !is_expert_part(ref.part) ||
        ref.kind == TensorKind::kBias) {
      continue;
    }
    const std::string suffix = ref.kind == TensorKind::kWeight ? "weight" : ref.suffix;
    const bool shared = ref.expert < 0;
    if (shared && (tensor.shape.empty() || tensor.shape[0] != layer->num_experts)) return false;
    const int first = shared ? 0 : ref.expert;
    const int last = shared ? layer->num_experts - 1 : ref.expert;
    for (int e = first; e <= last; ++e) {
      EncodedMatrix& matrix = matrices[{ref.layer, e, ref.part}];
      matrix.size = size_of_part(ref.part, *layer);
      EncodedTensor part{name, tensor.dtype, tensor.shape, tensor.bytes.data()};
      if (shared) {
        part.shape.erase(part.shape.begin());
        part.data +=
            static_cast<size_t>(e) * tensor.bytes.size() / static_cast<size_t>(layer->num_experts);
      }
      matrix.tensors.emplace(suffix, std::move(part));
    }
  }
  return true;
}

}  // namespace

std::optional<DecodedWeights> decode_weights(const MutableCheckpoint& checkpoint,
                                             const TensorMap& tensors,
                                             const MoeModelConfig& intact) {
  std::map<std::tuple<int, int, Part>, EncodedMatrix> matrices;
  if (!gather(checkpoint, tensors, intact, matrices)) return std::nullopt;
  DecodedWeights weights;
  try {
    const QuantScheme scheme = read_quant_scheme(checkpoint.config, "config.json").value();
    for (const auto& [place, matrix] : matrices)
      weights.emplace(place, decode(scheme, matrix));
  } catch (const Error&) {
    return std::nullopt;
  }
  return weights;
}

bool same_weights(const DecodedWeights& a, const DecodedWeights& b) {
  const auto same = [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](const auto& x, const auto& y) {
    return x.first == y.first &&
           std::equal(x.second.begin(), x.second.end(), y.second.begin(), y.second.end(), same);
  });
}

}  // namespace gantry::test
