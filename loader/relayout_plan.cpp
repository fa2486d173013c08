// Plans conversions between spellings. Source and target meet in what a tensor means, (layer,
// expert, part, kind): the source's row of the family table says where such a part stands in its
// tensor, the target's row where it goes. There is no code for a pair of spellings.

#include "loader/relayout_plan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"
#include "loader/relayout_geometry.h"

namespace gantry {
namespace {

/// A source tensor that holds a part of an expert.
struct Holder {
  const std::string* name = nullptr;
  const CheckpointTensor* tensor = nullptr;
  TensorRef ref;
  /// MXFP4: how the target stores it, where that is not how the source does.
  std::optional<Mxfp4Layout> becomes = {};
  Mxfp4View view = Mxfp4View::kStored;
  const CheckpointTensor* scales = nullptr;
};

/// Which tensor of a matrix: "weight", "bias" or the suffix of a further one.
using Kind = std::pair<TensorKind, std::string>;

/// The tensors of one layer's experts: by part, expert and kind.
using LayerHolders = std::map<std::pair<size_t, int>, std::map<Kind, Holder>>;

class RelayoutPlanner {
 public:
  RelayoutPlanner(const Checkpoint& checkpoint, const MoeModelConfig& config, const TensorMap& map,
                  const RelayoutTarget& target)
      : checkpoint_(checkpoint),
        config_(config),
        map_(map),
        target_(target),
        spelling_(target.family != nullptr ? *target.family : *config.family, target.choice,
                  is_gated_model(config)) {
    if (is_other_family()) foreign_names_.emplace(*target.family, target.prefix);
  }

  RelayoutPlan build() {
    const auto order = in_file_order(checkpoint_);
    std::map<const CheckpointTensor*, int> layer_of_expert;
    for (const auto& [name, tensor] : order) {
      if (const std::optional<TensorRef> ref = expert_tensor_ref(*name, config_, map_)) {
        add_holder(*name, *tensor, *ref);
        layer_of_expert.emplace(tensor, ref->layer);
      }
    }
    GANTRY_CHECK(!plan_.mxfp4 || not_mxfp4_ == nullptr, ErrorCode::kUnsupported,
                 "{}: is not MXFP4 like other experts, whose other spelling needs a config that "
                 "says so of all",
                 not_mxfp4_ == nullptr ? "" : *not_mxfp4_);
    std::set<int> emitted;
    for (const auto& [name, tensor] : order) {
      const auto expert = layer_of_expert.find(tensor);
      if (expert == layer_of_expert.end()) {
        add_copy(target_name(*name), *name, *tensor);
      } else if (emitted.insert(expert->second).second) {
        add_layer(*config_.find_layer(expert->second));
      }
    }
    if (map_.counts().auxiliary > 0) {
      plan_.notes.push_back(
          fmt::format("{} tensors of multi-token prediction layers are copied as they are",
                      map_.counts().auxiliary));
    }
    return std::move(plan_);
  }

 private:
  [[nodiscard]] bool is_other_family() const {
    return target_.family != nullptr && target_.family != config_.family;
  }

  [[nodiscard]] const NameMap& target_names() const {
    return foreign_names_ ? *foreign_names_ : map_.names();
  }

  /// Quantized tensors have no bits in common with those of another family's format.
  void require_same_bits(const std::string& name, const CheckpointTensor& tensor) const {
    GANTRY_CHECK(tensor.info.block_type.empty(), ErrorCode::kUnsupported,
                 "{}: {} blocks of GGUF have no other spelling with the same bits", name,
                 tensor.info.block_type);
    GANTRY_CHECK(
        tensor.info.end <= checkpoint_.files()[static_cast<size_t>(tensor.file)].file_bytes(),
        ErrorCode::kUnsupported,
        "{}: is stored in blocks of GGUF, which have no other spelling with the same bits", name);
  }

  static bool is_gated_model(const MoeModelConfig& config) {
    GANTRY_CHECK(!config.layers.empty(), ErrorCode::kUnsupported,
                 "the model has no MoE layer: there is nothing to convert");
    return config.layers.front().gated();
  }

  /// How the target stores MXFP4; nothing where engines would not find it in such tensors.
  [[nodiscard]] std::optional<Mxfp4Layout> target_mxfp4() const {
    if (spelling_.family().name == "gguf") return Mxfp4Layout::kGgml;
    if (!is_stacked(spelling_.pattern(spelling_.expert_pattern(Part::kW2)).stacking))
      return Mxfp4Layout::kPacked;
    return spelling_.family().stacks_mxfp4 ? std::optional(Mxfp4Layout::kBlocks) : std::nullopt;
  }

  void add_holder(const std::string& name, const CheckpointTensor& tensor, const TensorRef& ref) {
    const QuantScheme* scheme =
        scheme_of(*config_.find_layer(ref.layer), ref, std::max(0, ref.expert));
    const std::optional<Mxfp4Layout> from = mxfp4_layout(tensor.info, ref, scheme);
    const std::optional<Mxfp4Layout> to = target_mxfp4();
    if (from && to && *from != *to) {
      GANTRY_CHECK(
          *to == Mxfp4Layout::kPacked || scheme == nullptr || !scheme->activations.declared(),
          ErrorCode::kUnsupported,
          "{}: its config declares quantized inputs ({}), of which the target says nothing", name,
          describe(scheme->activations));
      return add_mxfp4(name, tensor, ref, *from, *to);
    }
    if (ref.kind != TensorKind::kBias && not_mxfp4_ == nullptr) not_mxfp4_ = &name;
    require_same_bits(name, tensor);
    GANTRY_CHECK(!is_other_family() || ref.kind != TensorKind::kEncoded, ErrorCode::kUnsupported,
                 "{}: {} of a quantized matrix has no name in {} with the same bits", name,
                 ref.suffix, spelling_.family().name);
    hold({.name = &name, .tensor = &tensor, .ref = ref}, {ref.kind, ref.suffix});
  }

  void hold(const Holder& holder, const Kind& kind) {
    const TensorRef& ref = holder.ref;
    const int stacked = stacked_count(*holder.tensor, ref, *config_.find_layer(ref.layer));
    const int first = ref.expert >= 0 ? ref.expert : 0;
    const int last = ref.expert >= 0 ? ref.expert : stacked - 1;
    for (int e = first; e <= last; ++e) {
      for (const Part part : provided_parts(ref.part))
        holders_[ref.layer][{expert_part_index(part), e}][kind] = holder;
    }
  }

  /// Codes or scales of MXFP4, or both in one tensor, under the kinds that the target has.
  void add_mxfp4(const std::string& name, const CheckpointTensor& tensor, const TensorRef& ref,
                 Mxfp4Layout from, Mxfp4Layout to) {
    plan_.mxfp4 = to;
    const auto encoded = [](std::string_view suffix) {
      return Kind{TensorKind::kEncoded, std::string(suffix)};
    };
    Holder holder{.name = &name, .tensor = &tensor, .ref = ref, .becomes = to};
    if (from == Mxfp4Layout::kGgml) {
      holder.view = Mxfp4View::kCodes;
      hold(holder, encoded(mxfp4_codes(to)));
      holder.view = Mxfp4View::kScales;
      return hold(holder, encoded(mxfp4_scales(to)));
    }
    const bool codes = ref.suffix == mxfp4_codes(from);
    require_mxfp4_bytes(name, tensor, ref, codes);
    if (to != Mxfp4Layout::kGgml)
      return hold(holder, encoded(codes ? mxfp4_codes(to) : mxfp4_scales(to)));
    if (!codes) return;  // they go with the codes
    TensorRef scales = ref;
    scales.suffix = mxfp4_scales(from);
    const std::string scales_name = map_.names().format(scales);
    holder.scales = checkpoint_.find(scales_name);
    GANTRY_CHECK(holder.scales != nullptr, ErrorCode::kFormat, "{}: expected {} beside it", name,
                 scales_name);
    require_mxfp4_bytes(scales_name, *holder.scales, scales, /*codes=*/false);
    holder.view = Mxfp4View::kGgml;
    hold(holder, {TensorKind::kWeight, ""});
  }

  void require_mxfp4_bytes(const std::string& name, const CheckpointTensor& tensor,
                           const TensorRef& ref, bool codes) const {
    const MoeLayerSpec& spec = *config_.find_layer(ref.layer);
    const std::vector<Part> parts = provided_parts(ref.part);
    const MatrixSize size = part_size(parts[0], spec);
    const int64_t matrices =
        static_cast<int64_t>(parts.size()) * (ref.expert < 0 ? spec.num_experts : 1);
    GANTRY_CHECK(size.in % kMxfp4Block == 0, ErrorCode::kFormat,
                 "{}: rows of {} are no whole blocks of {}", name, size.in, kMxfp4Block);
    const int64_t expected =
        matrices * size.out * (size.in / kMxfp4Block) * (codes ? kMxfp4CodeBytes : 1);
    const DType dtype = tensor.info.dtype;
    GANTRY_CHECK((dtype == DType::kU8 || (!codes && dtype == DType::kF8E8M0)) &&
                     tensor.info.num_bytes() == expected,
                 ErrorCode::kFormat, "{}: expected {} bytes for {} matrices [{}, {}], found {}",
                 name, expected, matrices, size.out, size.in, describe(tensor.info));
  }

  /// One matrix' tensor of this kind, as the target stores it.
  static EncodedShape mxfp4_shape(const MoeLayerSpec& spec, Mxfp4Layout layout, const Kind& kind,
                                  Part part) {
    const MatrixSize size = part_size(part, spec);
    const int64_t blocks = size.in / kMxfp4Block;
    EncodedShape shape;
    shape.rows = size.out;
    if (layout == Mxfp4Layout::kGgml) {
      shape.cols = blocks * kMxfp4BlockBytes;
    } else {
      shape.cols = kind.second == mxfp4_codes(layout) ? blocks * kMxfp4CodeBytes : blocks;
    }
    shape.dims = {shape.rows, shape.cols};
    if (layout == Mxfp4Layout::kBlocks && kind.second == mxfp4_codes(layout))
      shape.dims = {shape.rows, blocks, kMxfp4CodeBytes};
    return shape;
  }

  /// Experts in a stacked tensor: identity experts may have gate and up in it.
  static int stacked_count(const CheckpointTensor& tensor, const TensorRef& ref,
                           const MoeLayerSpec& spec) {
    const bool more = ref.expert < 0 && ref.part == Part::kW13 && !tensor.info.shape.empty() &&
                      tensor.info.shape[0] == spec.num_named_experts();
    return more ? spec.num_named_experts() : spec.num_experts;
  }

  /// The name of a tensor that is no expert's. Names of quantized checkpoints stay: their configs
  /// speak of modules by name.
  std::string target_name(const std::string& name) {
    if (is_other_family()) return foreign_name(name);
    if (config_.quant) return name;
    const ParsedName parsed = map_.names().parse(name);
    std::string target = name;
    if (parsed.ref.layer < 0 || parsed.ref.layer >= config_.num_layers) return target;
    if (parsed.name_class == NameClass::kMoe && config_.find_layer(parsed.ref.layer) != nullptr) {
      target = map_.names().format(spelling_.respell_single(parsed.ref));
    } else {
      const std::string stem = map_.names().prefix() + std::string(config_.family->container) + ".";
      target = spelling_.respell_other(name, stem);
    }
    if (target != name) ++plan_.num_renamed;
    return target;
  }

  std::string foreign_name(const std::string& name) {
    const ForeignNames names{&map_.names(), &config_, &spelling_, &target_names(),
                             target_.other_name};
    std::string target = names(name);
    if (target != name) ++plan_.num_renamed;
    return target;
  }

  /// Experts that have the part: all of them, and identity experts where the file has tensors.
  static int count_experts(const LayerHolders& holders, size_t part_index) {
    int count = 0;
    while (holders.contains({part_index, count}))
      ++count;
    return count;
  }

  void add_layer(const MoeLayerSpec& spec) {
    const LayerHolders& holders = holders_.at(spec.layer);
    std::vector<int> patterns;
    for (const Part part : kExpertParts) {
      const int pattern = spelling_.expert_pattern(part);
      if (pattern >= 0 && std::find(patterns.begin(), patterns.end(), pattern) == patterns.end()) {
        patterns.push_back(pattern);
      }
    }
    const bool stacked = is_stacked(spelling_.pattern(patterns.front()).stacking);
    const int named = spec.num_named_experts();
    for (int e = 0; e < (stacked ? 1 : named); ++e) {
      for (const int pattern : patterns)
        add_pattern(spec, holders, pattern, stacked ? -1 : e);
    }
  }

  /// All target tensors of one pattern: of one expert, or of all for -1.
  void add_pattern(const MoeLayerSpec& spec, const LayerHolders& holders, int pattern, int expert) {
    const std::vector<Part> parts = provided_parts(spelling_.pattern(pattern).part);
    const size_t first_index = expert_part_index(parts[0]);
    const int count = count_experts(holders, first_index);
    if (expert >= count) return;  // an identity expert without this part
    const auto& kinds = holders.at({first_index, std::max(0, expert)});
    const int first = std::max(0, expert);
    const int last = expert < 0 ? count - 1 : expert;
    for (int e = first; e <= last; ++e) {
      for (const Part part : parts)
        require_same_kinds(spec, kinds, holders, part, e);
    }
    for (const auto& [kind, holder] : kinds)
      add_target(spec, holders, pattern, kind, holder, first, last, expert);
  }

  void require_same_kinds(const MoeLayerSpec& spec, const std::map<Kind, Holder>& kinds,
                          const LayerHolders& holders, Part part, int expert) const {
    const auto found = holders.find({expert_part_index(part), expert});
    GANTRY_CHECK(found != holders.end(), ErrorCode::kFormat, "layer {}, expert {}: no {}",
                 spec.layer, expert, to_string(part));
    for (const auto& [kind, holder] : kinds) {
      GANTRY_CHECK(found->second.contains(kind), ErrorCode::kUnsupported,
                   "{}: layer {}, expert {}, {} has no tensor like it, so they cannot share one",
                   *holder.name, spec.layer, expert, to_string(part));
    }
    for (const auto& [kind, holder] : found->second) {
      GANTRY_CHECK(
          kinds.contains(kind) && holder.tensor->info.dtype == kinds.at(kind).tensor->info.dtype,
          ErrorCode::kUnsupported, "{}: cannot share a tensor with {}, which is {}", *holder.name,
          *kinds.begin()->second.name, describe(kinds.begin()->second.tensor->info));
    }
  }

  void add_target(const MoeLayerSpec& spec, const LayerHolders& holders, int pattern_index,
                  const Kind& kind, const Holder& example, int first, int last, int expert) {
    const TensorPattern& pattern = spelling_.pattern(pattern_index);
    TensorRef ref;
    ref.layer = spec.layer;
    ref.expert = expert;
    ref.part = pattern.part;
    ref.kind = kind.first;
    ref.suffix = kind.second;
    ref.pattern = pattern_index;
    ref.block = config_.quant && !is_other_family() ? example.ref.block : spelling_.block();
    // Configs of quantized checkpoints speak of modules by name: what stands alone keeps its own.
    if (config_.quant && !is_other_family() && is_rename(example.ref, pattern))
      ref.pattern = example.ref.pattern;
    if (pattern.name.find("{b}") == std::string_view::npos) ref.block = 0;
    GANTRY_CHECK(ref.kind != TensorKind::kEncoded || can_name(pattern.naming, ref.suffix),
                 ErrorCode::kUnsupported, "{}: {} has no name for {}", *example.name, pattern.name,
                 ref.suffix);
    TensorInfo info;
    info.name = target_names().format(ref);
    info.dtype = example.tensor->info.dtype;

    if (!example.becomes && is_rename(example.ref, pattern)) {
      info.shape = example.tensor->info.shape;
      add_tensor(std::move(info), /*expert_tensor=*/true);
      return add_whole(*example.tensor);
    }
    const bool plain = !example.becomes && is_plain(spec, example, std::max(0, expert));
    std::optional<EncodedShape> shape;
    if (!plain) shape = shape_of(spec, example, kind, provided_parts(pattern.part)[0], first);
    info.shape = plain ? plain_dims(spec, pattern, kind.first, last - first + 1)
                       : encoded_dims(*shape, pattern, suffix_of(kind), last - first + 1);
    if (example.becomes == Mxfp4Layout::kGgml) {
      info.block_type = "mxfp4";
      info.shape.back() = info.shape.back() / kMxfp4BlockBytes * kMxfp4Block;  // elements
    }
    if (shape) {
      require_joinable(*example.name, suffix_of(kind), info.dtype, *shape, pattern, spec,
                       scheme_of(spec, example.ref, first));
    }
    add_tensor(std::move(info), /*expert_tensor=*/true);
    for (int e = first; e <= last; ++e)
      add_slab(spec, holders, pattern, kind, shape, e);
  }

  /// The same tensor under another name: whatever is in it.
  static bool is_rename(const TensorRef& ref, const TensorPattern& pattern) {
    return ref.expert >= 0 && pattern.stacking == Stacking::kPerExpert && ref.part == pattern.part;
  }

  [[nodiscard]] bool is_plain(const MoeLayerSpec& spec, const Holder& holder, int expert) const {
    if (holder.ref.kind == TensorKind::kBias) return true;
    if (holder.ref.kind == TensorKind::kEncoded) return false;
    const bool known = expert < spec.num_experts;  // identity experts are not in the map
    return !known || !map_.layer(spec.layer).is_encoded(expert, provided_parts(holder.ref.part)[0]);
  }

  static std::string_view suffix_of(const Kind& kind) {
    return kind.first == TensorKind::kEncoded ? std::string_view(kind.second)
                                              : to_string(kind.first);
  }

  [[nodiscard]] const QuantScheme* scheme_of(const MoeLayerSpec& spec, const TensorRef& ref,
                                             int expert) const {
    if (expert >= spec.num_experts) return nullptr;
    const size_t index = expert_part_index(provided_parts(ref.part)[0]);
    return map_.layer(spec.layer).experts[static_cast<size_t>(expert)].schemes[index];
  }

  [[nodiscard]] EncodedShape shape_of(const MoeLayerSpec& spec, const Holder& holder,
                                      const Kind& kind, Part part, int expert) const {
    if (holder.becomes) return mxfp4_shape(spec, *holder.becomes, kind, part);
    return encoded_shape(*holder.name, holder.tensor->info, holder.ref,
                         config_.family->tensors[static_cast<size_t>(holder.ref.pattern)], spec,
                         part, scheme_of(spec, holder.ref, expert));
  }

  static std::vector<int64_t> plain_dims(const MoeLayerSpec& spec, const TensorPattern& pattern,
                                         TensorKind kind, int num_experts) {
    std::vector<int64_t> dims = expected_shapes(pattern, kind, spec)[0];
    if (is_stacked(pattern.stacking)) dims[0] = dims[0] / spec.num_experts * num_experts;
    return dims;
  }

  void add_slab(const MoeLayerSpec& spec, const LayerHolders& holders, const TensorPattern& pattern,
                const Kind& kind, const std::optional<EncodedShape>& shape, int expert) {
    RelayoutSlab slab;
    slab.target = plan_.tensors.size() - 1;
    slab.element_bytes = size_of(plan_.tensors.back().dtype);
    for (const Part part : provided_parts(pattern.part)) {
      const Holder& holder = holders.at({expert_part_index(part), expert}).at(kind);
      const TensorPattern& source =
          config_.family->tensors[static_cast<size_t>(holder.ref.pattern)];
      RelayoutPart from{.source = holder.tensor,
                        .from = {},
                        .to = {},
                        .view = holder.view,
                        .scales = holder.scales};
      if (shape) {
        const EncodedShape own = shape_of(spec, holder, kind, part, expert);
        GANTRY_CHECK(own.dims == shape->dims, ErrorCode::kFormat,
                     "{}: expected {} for one matrix like those before it, found {}", *holder.name,
                     shape_text(shape->dims), shape_text(own.dims));
        from.from = encoded_view(own, source, suffix_of({holder.ref.kind, holder.ref.suffix}), part,
                                 expert);
        from.to = encoded_view(own, pattern, suffix_of(kind), part, expert);
      } else {
        from.from = file_view(source, kind.first, spec, part, expert);
        from.to = file_view(pattern, kind.first, spec, part, expert);
      }
      slab.rows = from.to.slab_rows;
      slab.cols = from.to.slab_cols;
      slab.rows_are_out = from.to.rows_are_out;
      slab.offset_bytes = from.to.slab_offset * slab.element_bytes;
      if (shape && shape->scalar && !slab.parts.empty()) {
        add_equal(spec, holders.at({expert_part_index(Part::kW1), expert}).at(kind), holder,
                  expert);
        continue;
      }
      slab.parts.push_back(from);
    }
    plan_.slabs.push_back(std::move(slab));
  }

  void add_equal(const MoeLayerSpec& spec, const Holder& a, const Holder& b, int expert) {
    if (a.tensor == b.tensor) return;
    plan_.equal.push_back({*a.name, a.tensor, b.tensor, *b.name, spec.layer, expert});
  }

  void add_tensor(TensorInfo info, bool expert_tensor) {
    if (expert_tensor) ++plan_.num_expert_tensors;
    int64_t bytes = size_of(info.dtype);
    for (const int64_t dim : info.shape)
      bytes *= dim;  // no larger than the source's, which was checked
    if (!info.block_type.empty()) bytes = bytes / kMxfp4Block * kMxfp4BlockBytes;
    plan_.total_bytes += bytes;
    plan_.tensors.push_back(std::move(info));
  }

  void add_copy(std::string target, const std::string& name, const CheckpointTensor& tensor) {
    require_same_bits(name, tensor);
    GANTRY_CHECK(!plan_.mxfp4 || size_of(tensor.info.dtype) > 1, ErrorCode::kUnsupported,
                 "{}: {} beside experts in MXFP4: the config of their other layout speaks of "
                 "experts alone",
                 name, describe(tensor.info));
    add_tensor({.name = std::move(target), .dtype = tensor.info.dtype, .shape = tensor.info.shape},
               /*expert_tensor=*/false);
    add_whole(tensor);
  }

  /// The last target is a copy of `tensor`.
  void add_whole(const CheckpointTensor& tensor) {
    add_run(plan_, plan_.tensors.size() - 1, 0, tensor, 0, tensor.info.num_bytes());
  }

  const Checkpoint& checkpoint_;
  const MoeModelConfig& config_;
  const TensorMap& map_;
  const RelayoutTarget& target_;
  Spelling spelling_;
  std::optional<NameMap> foreign_names_;
  std::map<int, LayerHolders> holders_;
  const std::string* not_mxfp4_ = nullptr;  ///< the first expert tensor that stays as it is
  RelayoutPlan plan_;
};

}  // namespace

RelayoutPlan plan_relayout(const Checkpoint& checkpoint, const MoeModelConfig& config,
                           const TensorMap& map, const RelayoutTarget& target) {
  GANTRY_CHECK(!checkpoint.names_only(), ErrorCode::kInvalidArgument,
               "a conversion needs the files' headers, found names only");
  return RelayoutPlanner(checkpoint, config, map, target).build();
}

}  // namespace gantry
