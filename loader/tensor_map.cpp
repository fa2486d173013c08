#include "loader/tensor_map.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <set>

#include "kernels/base/check.h"
#include "loader/encodings/ggml_types.h"
#include "loader/expected_tensors.h"
#include "loader/layer_schemes.h"
#include "loader/tensor_geometry.h"

// Two passes: every name is parsed and put where it belongs; then every layer is compared with what
// its config calls for. The expected side comes from config and family alone, never from what was
// found.

namespace gantry {
namespace {

// Parts whose biases configs do not declare: the tensor's presence does.
bool may_have_bias(Part part) {
  return is_shared_part(part) || part == Part::kLatentIn || part == Part::kLatentOut;
}

}  // namespace

size_t expert_part_index(Part part) {
  const auto* found = std::find(kExpertParts.begin(), kExpertParts.end(), part);
  if (found == kExpertParts.end()) {
    found = std::find_if(kExpertParts.begin(), kExpertParts.end(),
                         [&](Part routed) { return shared_part(routed) == part; });
  }
  GANTRY_CHECK(found != kExpertParts.end(), ErrorCode::kInternal, "{} is not an expert part",
               to_string(part));
  return static_cast<size_t>(found - kExpertParts.begin());
}

const TensorSource* LayerTensors::expert_source(int expert, Part part, TensorKind kind) const {
  return matrices(expert).parts[expert_part_index(part)][static_cast<size_t>(kind)];
}

bool LayerTensors::is_encoded(int expert, Part part) const {
  const Expert& tensors = matrices(expert);
  const size_t index = expert_part_index(part);
  if (!tensors.encoded[index].empty()) return true;
  const TensorSource* weight = tensors.parts[index][0];
  return weight != nullptr && weight->tensor->file >= 0 &&
         !is_plain_float(weight->tensor->info.dtype);
}

bool LayerTensors::has_encoded_experts() const {
  for (int e = 0; e < static_cast<int>(experts.size()); ++e) {
    for (const Part part : kExpertParts) {
      if (is_encoded(e, part)) return true;
    }
  }
  return false;
}

bool LayerTensors::has_encoded_shared() const {
  return std::any_of(kExpertParts.begin(), kExpertParts.end(),
                     [&](Part part) { return is_encoded(-1, shared_part(part)); });
}

const TensorSource* LayerTensors::any_source(int expert, Part part) const {
  const Expert& tensors = matrices(expert);
  const size_t index = expert_part_index(part);
  if (tensors.parts[index][0] != nullptr || tensors.encoded[index].empty()) {
    return tensors.parts[index][0];
  }
  return tensors.encoded[index].begin()->second;
}

const TensorSource* LayerTensors::single(Part part, TensorKind kind) const {
  const auto found = singles.find({part, kind});
  return found == singles.end() ? nullptr : found->second;
}

const LayerTensors& TensorMap::layer(int layer) const {
  const auto found = layers_.find(layer);
  GANTRY_CHECK(found != layers_.end(), ErrorCode::kInvalidArgument, "layer {} is not a MoE layer",
               layer);
  return found->second;
}

class TensorMapBuilder {
 public:
  TensorMapBuilder(const Checkpoint& checkpoint, const MoeModelConfig& config, LoadReport& report)
      : checkpoint_(checkpoint), config_(config), report_(report) {}

  TensorMap build() {
    find_prefix();
    for (const MoeLayerSpec& spec : config_.layers) {
      map_.layers_[spec.layer].experts.resize(static_cast<size_t>(spec.num_experts));
    }
    for (const auto& [name, tensor] : checkpoint_.tensors())
      place(name, tensor);
    for (const MoeLayerSpec& spec : config_.layers)
      check_complete(spec);
    resolve_schemes(checkpoint_, config_, map_.layers_, report_);
    if (!checkpoint_.names_only()) {
      for (auto& source : map_.sources_) {
        if (!belongs_to_encoded(*source) || has_blocks(*source)) check_shape(*source);
      }
      for (const MoeLayerSpec& spec : config_.layers)
        check_dtypes(spec);
    }
    add_notes();
    return std::move(map_);
  }

 private:
  void find(FindingKind kind, const TensorRef& ref, const std::string& name,
            const CheckpointTensor* tensor, std::string message) {
    std::string part = ref.part == Part::kOther ? "" : std::string(to_string(ref.part));
    const std::string file = tensor == nullptr ? "" : checkpoint_.file_name(*tensor);
    if (!file.empty()) message += fmt::format(" ({})", file);
    report_.add({kind, std::move(message), name, file, ref.layer, ref.expert, std::move(part)});
  }

  void find_prefix() {
    std::vector<std::string> names;
    names.reserve(checkpoint_.tensors().size());
    for (const auto& [name, tensor] : checkpoint_.tensors())
      names.push_back(name);
    const std::vector<std::string> prefixes = NameMap::find_prefixes(*config_.family, names);
    if (prefixes.size() > 1) {
      report_.add({FindingKind::kPrefix,
                   fmt::format("expert tensors stand under {} prefixes: '{}'; only '{}' is read",
                               prefixes.size(), fmt::join(prefixes, "', '"), prefixes[0]),
                   "", "", -1, -1, ""});
    }
    map_.names_ = std::make_unique<NameMap>(
        *config_.family,
        prefixes.empty() ? std::string(config_.family->default_prefix) : prefixes[0]);
  }

  void unknown(const std::string& name, const CheckpointTensor& tensor, const TensorRef& ref,
               std::string_view why) {
    ++map_.counts_.unknown;
    find(FindingKind::kUnknown, ref, name, &tensor, fmt::format("{}: {}", name, why));
  }

  void place(const std::string& name, const CheckpointTensor& tensor) {
    ++map_.counts_.total;
    const ParsedName parsed = map_.names_->parse(name);
    const int layer = parsed.ref.layer;
    if (layer >= config_.num_layers && layer < config_.num_layers + config_.num_mtp_layers) {
      ++map_.counts_.auxiliary;
      return;
    }
    const bool looks_ours =
        parsed.name_class == NameClass::kMoe || parsed.name_class == NameClass::kUnknown;
    if (layer >= config_.num_layers && looks_ours) {
      return unknown(name, tensor, parsed.ref,
                     fmt::format("the config has layers 0 to {}", config_.num_layers - 1));
    }
    const MoeLayerSpec* spec = layer >= 0 ? config_.find_layer(layer) : nullptr;
    switch (parsed.name_class) {
      case NameClass::kModel:
        ++map_.counts_.model;
        return;
      case NameClass::kAuxiliary:
        ++map_.counts_.auxiliary;
        return;
      case NameClass::kUnknown:
        // The block's name is also that of a dense layer's MLP.
        if (layer >= 0 && spec == nullptr && name.find("expert") == std::string::npos) {
          ++map_.counts_.model;
          return;
        }
        return unknown(name, tensor, parsed.ref,
                       spec == nullptr ? "named like an expert, but not under a MoE layer"
                                       : "not a tensor that this family's MoE layers have");
      case NameClass::kMoe:
        break;
    }
    if (spec == nullptr) {
      return unknown(name, tensor, parsed.ref,
                     fmt::format("the config says that layer {} is dense", layer));
    }
    place_in_layer(name, tensor, parsed.ref, *spec);
  }

  void place_in_layer(const std::string& name, const CheckpointTensor& tensor, const TensorRef& ref,
                      const MoeLayerSpec& spec) {
    if (ref.part == Part::kOther) {
      ++map_.counts_.ignored;
      return report_.note(
          fmt::format("tensors like {} are not read: nothing is computed from them", name));
    }
    LayerTensors& layer = map_.layers_[spec.layer];
    if (ref.kind == TensorKind::kEncoded &&
        (!config_.quant || !(is_expert_part(ref.part) || is_shared_part(ref.part)))) {
      return unknown(name, tensor, ref,
                     config_.quant ? "quantized tensors are read for experts only"
                                   : "a tensor of a quantized matrix, but the config names no "
                                     "quantization");
    }
    auto source = std::make_unique<TensorSource>(TensorSource{name, &tensor, ref});
    if (!is_expert_part(ref.part)) {
      if (!place_single(*source, layer, spec)) return;
    } else {
      if (ref.expert >= spec.num_experts) {
        if (ref.expert < spec.num_named_experts()) {
          ++map_.counts_.ignored;
          return report_.note(fmt::format(
              "experts {} to {} are identity experts: their gate and up tensors are not read",
              spec.num_experts, spec.num_named_experts() - 1));
        }
        return unknown(name, tensor, ref,
                       fmt::format("the config has experts 0 to {}", spec.num_experts - 1));
      }
      if (!spec.gated() && ref.part == Part::kW3) {
        return unknown(name, tensor, ref, "the layer's activation has no gate");
      }
      ++map_.counts_.expert;
      if (ref.kind == TensorKind::kBias) layer.expert_bias = true;
      if (!like_pattern_) like_pattern_ = ref.pattern;
      place_expert(*source, layer, spec);
    }
    map_.sources_.push_back(std::move(source));
  }

  void place_expert(const TensorSource& source, LayerTensors& layer, const MoeLayerSpec& spec) {
    const int first = source.ref.expert >= 0 ? source.ref.expert : 0;
    const int last = source.ref.expert >= 0 ? source.ref.expert : spec.num_experts - 1;
    const TensorSource* previous = nullptr;
    for (int e = first; e <= last; ++e) {
      for (const Part part : provided_parts(source.ref.part)) {
        LayerTensors::Expert& expert = layer.experts[static_cast<size_t>(e)];
        const size_t index = expert_part_index(part);
        auto& place = source.ref.kind == TensorKind::kEncoded
                          ? expert.encoded[index][source.ref.suffix]
                          : expert.parts[index][static_cast<size_t>(source.ref.kind)];
        if (place != nullptr)
          previous = place;
        else
          place = &source;
      }
    }
    if (previous != nullptr) duplicate(source, *previous);
  }

  // Returns whether the config calls for a tensor of this meaning.
  bool place_single(const TensorSource& source, LayerTensors& layer, const MoeLayerSpec& spec) {
    const auto required = required_singles(spec);
    const TensorRef& ref = source.ref;
    const auto is_required = [&](Part part, TensorKind kind) {
      return std::find(required.begin(), required.end(), std::pair{part, kind}) != required.end();
    };
    for (const Part part : provided_parts(ref.part)) {
      const bool wanted = is_required(part, ref.kind) ||
                          (is_required(part, TensorKind::kWeight) &&
                           ((ref.kind == TensorKind::kBias && may_have_bias(part)) ||
                            (ref.kind == TensorKind::kEncoded && is_shared_part(part))));
      if (wanted) continue;
      unknown(source.name, *source.tensor, ref,
              fmt::format("the config says that the layer has no {} {}", to_string(part),
                          to_string(ref.kind)));
      return false;
    }
    ++map_.counts_.layer;
    if (ref.kind == TensorKind::kBias && is_shared_part(ref.part)) layer.shared_bias = true;
    for (const Part part : provided_parts(ref.part)) {
      if (ref.kind == TensorKind::kEncoded) {
        auto& place = layer.shared.encoded[expert_part_index(part)][ref.suffix];
        if (place != nullptr) {
          duplicate(source, *place);
          break;
        }
        place = &source;
        continue;
      }
      const auto [place, inserted] = layer.singles.emplace(std::pair{part, ref.kind}, &source);
      if (inserted && is_shared_part(part) && ref.kind == TensorKind::kWeight) {
        layer.shared.parts[expert_part_index(part)][0] = &source;
      }
      if (inserted) continue;
      duplicate(source, *place->second);
      break;
    }
    return true;
  }

  void duplicate(const TensorSource& source, const TensorSource& previous) {
    find(FindingKind::kDuplicate, source.ref, source.name, source.tensor,
         fmt::format("{} and {} hold the same weights", previous.name, source.name));
  }

  void missing(const MoeLayerSpec& spec, int expert, Part part, TensorKind kind) {
    TensorRef ref;
    ref.layer = spec.layer;
    ref.expert = expert;
    ref.part = part;
    const std::string name =
        map_.names_->expected_name(spec.layer, expert, part, kind, like_pattern_);
    find(FindingKind::kMissing, ref, name, nullptr,
         fmt::format("{}: missing (layer {}{}, {} {})", name, spec.layer,
                     expert >= 0 ? fmt::format(", expert {}", expert) : "", to_string(part),
                     to_string(kind)));
  }

  void check_complete(const MoeLayerSpec& spec) {
    LayerTensors& layer = map_.layers_[spec.layer];
    layer.expert_bias = layer.expert_bias || spec.expert_bias;
    std::set<std::string> named;  // a fused tensor is missing once, not once an expert
    for (int e = 0; e < spec.num_experts; ++e) {
      for (const Part part : kExpertParts) {
        if (part == Part::kW3 && !spec.gated()) continue;
        for (const TensorKind kind : {TensorKind::kWeight, TensorKind::kBias}) {
          if (kind == TensorKind::kBias && !layer.expert_bias) continue;
          if (layer.expert_source(e, part, kind) != nullptr) continue;
          // Which tensors a quantized matrix needs, its encoding knows.
          if (kind == TensorKind::kWeight && layer.is_encoded(e, part)) continue;
          const std::string name =
              map_.names_->expected_name(spec.layer, e, part, kind, like_pattern_);
          if (named.insert(name).second) missing(spec, e, part, kind);
        }
      }
    }
    for (const auto& [part, kind] : required_singles(spec)) {
      const bool encoded = is_shared_part(part) && layer.is_encoded(-1, part);
      if (layer.single(part, kind) == nullptr && !encoded) missing(spec, -1, part, kind);
      if (layer.shared_bias && is_shared_part(part) &&
          layer.single(part, TensorKind::kBias) == nullptr) {
        missing(spec, -1, part, TensorKind::kBias);
      }
    }
  }

  // Families whose files exist in two orientations under one name list both. The first is what is
  // published; another is taken only if the first does not fit, so a shape that fits both (a
  // square) is refused rather than guessed.
  void check_shape(TensorSource& source) {
    const MoeLayerSpec& spec = *config_.find_layer(source.ref.layer);
    const auto& patterns = config_.family->tensors;
    const TensorPattern& declared = patterns[static_cast<size_t>(source.ref.pattern)];
    const std::vector<int64_t>& found = source.tensor->info.shape;
    std::vector<int> fitting;
    for (int p = 0; p < static_cast<int>(patterns.size()); ++p) {
      const TensorPattern& pattern = patterns[static_cast<size_t>(p)];
      if (pattern.name != declared.name || pattern.part != declared.part) continue;
      const auto shapes = expected_shapes(pattern, source.ref.kind, spec);
      if (std::find(shapes.begin(), shapes.end(), found) != shapes.end()) fitting.push_back(p);
    }
    if (fitting.size() == 1) {
      if (fitting[0] != source.ref.pattern) {
        report_.note(
            fmt::format("{} and tensors like it are read as [out, in]: published files of "
                        "this family are [in, out]",
                        source.name));
      }
      source.ref.pattern = fitting[0];
      return;
    }
    if (fitting.size() > 1) {
      // A bias has one orientation: every pattern of its name fits it.
      if (source.ref.kind == TensorKind::kBias) return;
      return find(FindingKind::kShape, source.ref, source.name, source.tensor,
                  fmt::format("{}: {} fits both orientations that files of this family have; its "
                              "meaning cannot be told",
                              source.name, shape_text(found)));
    }
    const auto expected = expected_shapes(declared, source.ref.kind, spec);
    std::string hint;
    if (found.size() == 3 && expected[0].size() == 3 &&
        found == std::vector<int64_t>{expected[0][0], expected[0][2], expected[0][1]}) {
      hint = ": the transpose of what this family writes";
    }
    find(FindingKind::kShape, source.ref, source.name, source.tensor,
         fmt::format("{}: expected {}, found {}{}", source.name, shape_text(expected[0]),
                     shape_text(found), hint));
  }

  // Weights must be plain floats, and of one dtype within a layer: an odd one out is a sign of a
  // damaged or half-converted file.
  void check_dtypes(const MoeLayerSpec& spec) {
    const LayerTensors& layer = map_.layers_[spec.layer];
    std::map<DType, int> votes;
    std::set<const TensorSource*> experts;
    for (const LayerTensors::Expert& expert : layer.experts) {
      for (const auto& part : expert.parts) {
        if (part[0] != nullptr && !belongs_to_encoded(*part[0]) && experts.insert(part[0]).second)
          ++votes[part[0]->tensor->info.dtype];
      }
    }
    const auto usual =
        std::max_element(votes.begin(), votes.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    for (const auto& source : map_.sources_) {
      if (source->ref.layer != spec.layer) continue;
      if (has_blocks(*source)) {
        check_block_type(*source);
        continue;
      }
      if (belongs_to_encoded(*source)) continue;
      const DType dtype = source->tensor->info.dtype;
      if (source->ref.part == Part::kHashTable) {
        if (dtype != DType::kI64 && dtype != DType::kI32) wrong_dtype(*source, "i64 or i32");
      } else if (!is_plain_float(dtype)) {
        wrong_dtype(*source, "f32, f16 or bf16");
      } else if (experts.contains(source.get()) && dtype != usual->first &&
                 !config_.family->mixed_types) {
        wrong_dtype(*source,
                    fmt::format("{} like the layer's other experts", to_string(usual->first)));
      }
    }
  }

  // The shapes and dtypes of quantized matrices are checked where they are decoded.
  [[nodiscard]] bool belongs_to_encoded(const TensorSource& source) const {
    if (source.ref.kind == TensorKind::kEncoded) return true;
    const bool shared = is_shared_part(source.ref.part);
    if (source.ref.kind != TensorKind::kWeight || !config_.quant ||
        !(is_expert_part(source.ref.part) || shared))
      return false;
    const int expert = shared ? -1 : std::max(0, source.ref.expert);
    return map_.layers_.at(source.ref.layer).is_encoded(expert, provided_parts(source.ref.part)[0]);
  }

  // GGUF: the tensor is stored in blocks, and shape and type of a block tensor are declared.
  static bool has_blocks(const TensorSource& source) {
    return !source.tensor->info.block_type.empty();
  }

  void check_block_type(const TensorSource& source) {
    const TensorInfo& info = source.tensor->info;
    const GgmlType* type = find_ggml_type(info.block_type);
    const bool readable = type != nullptr && type->decode != nullptr;
    if (!readable) {
      wrong_dtype(source, "a ggml type that can be read");
    } else if (info.dtype != DType::kF32 &&
               (source.ref.kind != TensorKind::kWeight || !is_expert_part(source.ref.part))) {
      wrong_dtype(source, "f32, f16 or bf16");
    }
  }

  void wrong_dtype(const TensorSource& source, std::string_view expected) {
    find(FindingKind::kDType, source.ref, source.name, source.tensor,
         fmt::format("{}: expected {}, found {}", source.name, expected,
                     type_text(source.tensor->info)));
  }

  void add_notes() {
    for (const std::string& note : config_.notes)
      report_.note(note);
    if (map_.counts_.auxiliary > 0) {
      report_.note(fmt::format("{} tensors of multi-token prediction layers are not loaded",
                               map_.counts_.auxiliary));
    } else if (config_.num_mtp_layers > 0) {
      report_.note("the checkpoint has no tensors of the declared multi-token prediction layers");
    }
  }

  const Checkpoint& checkpoint_;
  const MoeModelConfig& config_;
  LoadReport& report_;
  TensorMap map_;
  std::optional<int> like_pattern_;
};

TensorMap TensorMap::build(const Checkpoint& checkpoint, const MoeModelConfig& config,
                           LoadReport& report) {
  return TensorMapBuilder(checkpoint, config, report).build();
}

}  // namespace gantry
