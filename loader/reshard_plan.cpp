// Other cuts of the same tensors: into files of another size, into files by expert parallel rank,
// and into what one rank of TP x EP holds.

#include "loader/reshard_plan.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"
#include "loader/relayout_geometry.h"
#include "loader/tensor_cut.h"

namespace gantry {
namespace {

// Files hold an expert once: copies are made when weights are loaded.
ExpertMap map_without_replicas(const ExpertPlacement& placement, const MoeLayerSpec& spec,
                               int ep_size) {
  ExpertMap map = placement.map_of(spec.layer, spec.num_experts, ep_size);
  GANTRY_CHECK(!map.has_replicas(), ErrorCode::kUnsupported,
               "layer {}: {}: redundant experts are copied when they are loaded, not in files",
               spec.layer, placement.describe());
  return map;
}

void refuse_gguf(const std::string& name, const CheckpointTensor& tensor) {
  GANTRY_CHECK(tensor.info.block_type.empty(), ErrorCode::kUnsupported,
               "{}: {} blocks of GGUF cannot be stored in safetensors", name,
               tensor.info.block_type);
}

/// The meaning of a tensor that TP cuts: an expert's or a shared expert's.
std::optional<TensorRef> cut_ref(const std::string& name, const MoeModelConfig& config,
                                 const TensorMap& map) {
  if (std::optional<TensorRef> ref = expert_tensor_ref(name, config, map)) return ref;
  const ParsedName parsed = map.names().parse(name);
  if (parsed.name_class != NameClass::kMoe || !is_shared_part(parsed.ref.part)) return {};
  if (config.find_layer(parsed.ref.layer) == nullptr) return {};
  return parsed.ref;
}

class RankPlanner {
 public:
  RankPlanner(const Checkpoint& checkpoint, const MoeModelConfig& config, const TensorMap& map,
              const ParallelConfig& parallel, const ExpertPlacement& placement)
      : checkpoint_(checkpoint),
        config_(config),
        map_(map),
        parallel_(parallel),
        placement_(placement) {}

  void add(const std::string& name, const CheckpointTensor& tensor, RelayoutPlan& plan) const {
    refuse_gguf(name, tensor);
    const std::optional<TensorRef> ref = cut_ref(name, config_, map_);
    if (!ref) return add_copy(name, tensor, tensor.info.shape, plan);
    const MoeLayerSpec& spec = *config_.find_layer(ref->layer);
    const std::vector<int32_t> experts = experts_of(spec, *ref);
    if (experts.empty()) return;
    const TensorPattern& pattern = config_.family->tensors[static_cast<size_t>(ref->pattern)];
    if (parallel_.tp_size == 1) {
      take_experts(name, tensor, *ref, spec, experts, plan);
    } else {
      cut(name, tensor, *ref, pattern, spec, experts, plan);
    }
  }

 private:
  /// Logical experts of this rank that a tensor holds; {0} for shared ones.
  [[nodiscard]] std::vector<int32_t> experts_of(const MoeLayerSpec& spec,
                                                const TensorRef& ref) const {
    if (!is_expert_part(ref.part)) return {0};
    if (ref.expert >= spec.num_experts) return {ref.expert};  // identity experts: nobody's
    const ExpertMap owners = map_without_replicas(placement_, spec, parallel_.ep_size);
    const auto own = owners.slot_to_logical(parallel_.ep_rank());
    if (ref.expert < 0) return {own.begin(), own.end()};
    const bool is_own = std::find(own.begin(), own.end(), ref.expert) != own.end();
    return is_own ? std::vector<int32_t>{ref.expert} : std::vector<int32_t>{};
  }

  static size_t add_tensor(const std::string& name, DType dtype, std::vector<int64_t> shape,
                           RelayoutPlan& plan) {
    int64_t bytes = size_of(dtype);
    for (const int64_t dim : shape)
      bytes *= dim;
    plan.total_bytes += bytes;
    plan.tensors.push_back({.name = name, .dtype = dtype, .shape = std::move(shape)});
    return plan.tensors.size() - 1;
  }

  static void add_copy(const std::string& name, const CheckpointTensor& tensor,
                       const std::vector<int64_t>& shape, RelayoutPlan& plan) {
    const size_t target = add_tensor(name, tensor.info.dtype, shape, plan);
    add_run(plan, target, 0, tensor, 0, tensor.info.num_bytes());
  }

  static void take_experts(const std::string& name, const CheckpointTensor& tensor,
                           const TensorRef& ref, const MoeLayerSpec& spec,
                           const std::vector<int32_t>& experts, RelayoutPlan& plan) {
    if (ref.expert >= 0 || !is_expert_part(ref.part)) {
      return add_copy(name, tensor, tensor.info.shape, plan);
    }
    std::vector<int64_t> shape = tensor.info.shape;
    GANTRY_CHECK(!shape.empty() && shape[0] % spec.num_experts == 0, ErrorCode::kUnsupported,
                 "{}: expected a first axis of {} experts, found {}", name, spec.num_experts,
                 shape_text(shape));
    shape[0] = shape[0] / spec.num_experts * static_cast<int64_t>(experts.size());
    const size_t target = add_tensor(name, tensor.info.dtype, shape, plan);
    const int64_t bytes = tensor.info.num_bytes() / spec.num_experts;
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      add_run(plan, target, static_cast<int64_t>(slot) * bytes, tensor, experts[slot] * bytes,
              bytes);
    }
  }

  void cut(const std::string& name, const CheckpointTensor& tensor, const TensorRef& ref,
           const TensorPattern& pattern, const MoeLayerSpec& spec,
           const std::vector<int32_t>& experts, RelayoutPlan& plan) const {
    const bool shared = is_shared_part(ref.part);
    const int example = shared ? -1 : std::min(std::max(0, ref.expert), spec.num_experts - 1);
    const bool plain = ref.kind != TensorKind::kEncoded &&
                       !map_.layer(spec.layer).is_encoded(example, provided_parts(ref.part)[0]);
    const bool is_down = ref.part == Part::kW2 || ref.part == Part::kSharedW2;
    if (is_down && ref.kind == TensorKind::kBias) {
      // Of length H: every rank holds it whole, one rank adds it.
      return take_experts(name, tensor, ref, spec, experts, plan);
    }
    if (!plain && ref.kind != TensorKind::kBias) {
      return cut_quantized(name, tensor, ref, pattern, spec, experts, plan);
    }
    // The rank's own geometry is that of a layer with fewer experts of less width.
    MoeLayerSpec own = spec;
    own.num_experts = static_cast<int>(experts.size());
    own.routing.num_zero_experts = 0;
    const Slice slice = intermediate_slice(spec, shared);
    (shared ? own.shared.intermediate_size : own.intermediate_size) = slice.size();
    const size_t target =
        add_tensor(name, tensor.info.dtype, expected_shapes(pattern, ref.kind, own)[0], plan);
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      RelayoutSlab slab;
      slab.target = target;
      slab.element_bytes = size_of(tensor.info.dtype);
      for (const Part part : provided_parts(ref.part)) {
        const FileView to = file_view(pattern, ref.kind, own, part, static_cast<int>(slot));
        FileView from = file_view(pattern, ref.kind, spec, part, experts[slot]);
        from.offset += slice.begin * (is_down ? from.in_stride : from.out_stride);
        from.size = to.size;
        slab.rows = to.slab_rows;
        slab.cols = to.slab_cols;
        slab.rows_are_out = to.rows_are_out;
        slab.offset_bytes = to.slab_offset * slab.element_bytes;
        slab.parts.push_back({.source = &tensor, .from = from, .to = to});
      }
      plan.slabs.push_back(std::move(slab));
    }
  }

  [[nodiscard]] Slice intermediate_slice(const MoeLayerSpec& spec, bool shared) const {
    return split_evenly(shared ? spec.shared.intermediate_size : spec.intermediate_size,
                        parallel_.tp_size, parallel_.tp_rank());
  }

  /// One matrix' part of a quantized tensor, and what this rank keeps of it.
  struct QuantizedPart {
    EncodedPart whole;
    EncodedCut kept;

    [[nodiscard]] EncodedShape kept_shape() const {
      EncodedShape shape{.dims = kept.dims, .scalar = whole.shape.scalar};
      if (shape.scalar) return shape;
      shape.rows = kept.dims[0];
      for (size_t d = 1; d < kept.dims.size(); ++d)
        shape.cols *= kept.dims[d];
      return shape;
    }
  };

  [[nodiscard]] QuantizedPart cut_part(const std::string& name, const CheckpointTensor& tensor,
                                       const TensorRef& ref, const TensorPattern& pattern,
                                       const MoeLayerSpec& spec, Part part, int expert) const {
    const bool shared = is_shared_part(part);
    const LayerTensors::Expert& matrices =
        map_.layer(spec.layer).matrices(shared ? -1 : std::min(expert, spec.num_experts - 1));
    const size_t index = expert_part_index(part);
    const QuantScheme* scheme = matrices.schemes[index];
    GANTRY_CHECK(scheme != nullptr && ref.part != Part::kSharedW13, ErrorCode::kUnsupported,
                 "{}: where it is cut for tensor parallelism is not known (layer {}); --tp 1 is "
                 "possible",
                 name, spec.layer);
    QuantizedPart result;
    result.whole.name = name;
    result.whole.suffix =
        ref.kind == TensorKind::kEncoded ? std::string_view(ref.suffix) : to_string(ref.kind);
    result.whole.dtype = tensor.info.dtype;
    result.whole.shape = encoded_shape(name, tensor.info, ref, pattern, spec, part, scheme);
    result.whole.in_first = matrices.encoded[index].contains("qweight");
    const MatrixSize size = part_size(part, spec);
    MatrixCut cut{.size = size, .out = {0, size.out}, .in = {0, size.in}};
    const bool is_down = part == Part::kW2 || part == Part::kSharedW2;
    (is_down ? cut.in : cut.out) = intermediate_slice(spec, shared);
    result.kept = cut_encoded(result.whole, cut, *scheme, [&] {
      std::vector<std::byte> bytes(static_cast<size_t>(tensor.info.num_bytes()));
      checkpoint_.files()[static_cast<size_t>(tensor.file)].read(tensor.info.begin, bytes.data(),
                                                                 tensor.info.num_bytes());
      return bytes;
    });
    return result;
  }

  /// What is left of gate and up must still have a border that readers find.
  void require_border(const std::string& name, const CheckpointTensor& tensor,
                      const TensorPattern& pattern, const MoeLayerSpec& spec,
                      const QuantizedPart& part, std::string_view suffix) const {
    MoeLayerSpec own = spec;
    own.intermediate_size = intermediate_slice(spec, /*shared=*/false).size();
    const QuantScheme* scheme =
        map_.layer(spec.layer).matrices(0).schemes[expert_part_index(Part::kW1)];
    require_joinable(name, suffix, tensor.info.dtype, part.kept_shape(), pattern, own, scheme);
  }

  /// A tensor of quantized matrices (codes, scales ...): of one expert, or of all, gate and up in
  /// one or not.
  void cut_quantized(const std::string& name, const CheckpointTensor& tensor, const TensorRef& ref,
                     const TensorPattern& pattern, const MoeLayerSpec& spec,
                     const std::vector<int32_t>& experts, RelayoutPlan& plan) const {
    const std::vector<Part> parts = provided_parts(ref.part);
    const auto part_of = [&](Part part, int32_t expert) {
      return cut_part(name, tensor, ref, pattern, spec, part, expert);
    };
    const QuantizedPart example = part_of(parts[0], experts[0]);
    const std::string_view suffix = example.whole.suffix;
    if (!example.kept.literal.empty()) {
      GANTRY_CHECK(ref.expert >= 0 || is_shared_part(ref.part), ErrorCode::kUnsupported,
                   "{}: one {} for several experts; --tp 1 is possible", name, suffix);
      const size_t target = add_tensor(name, tensor.info.dtype, example.kept.dims, plan);
      plan.literals.push_back({target, example.kept.literal});
      return;
    }
    if (ref.part == Part::kW13) require_border(name, tensor, pattern, spec, example, suffix);
    const size_t target = add_tensor(
        name, tensor.info.dtype,
        encoded_dims(example.kept_shape(), pattern, suffix, static_cast<int64_t>(experts.size())),
        plan);
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      RelayoutSlab slab;
      slab.target = target;
      slab.element_bytes = size_of(tensor.info.dtype);
      for (const Part part : parts) {
        if (example.whole.shape.scalar && !slab.parts.empty()) continue;  // one for both
        const QuantizedPart own = part_of(part, experts[slot]);
        FileView from = encoded_view(own.whole.shape, pattern, suffix, part, experts[slot]);
        const FileView to =
            encoded_view(own.kept_shape(), pattern, suffix, part, static_cast<int>(slot));
        from.offset += own.kept.first_row * from.out_stride + own.kept.first_col * from.in_stride;
        from.size = to.size;
        slab.rows = to.slab_rows;
        slab.cols = to.slab_cols;
        slab.rows_are_out = to.rows_are_out;
        slab.offset_bytes = to.slab_offset * slab.element_bytes;
        slab.parts.push_back({.source = &tensor, .from = from, .to = to});
      }
      plan.slabs.push_back(std::move(slab));
    }
  }

  const Checkpoint& checkpoint_;
  const MoeModelConfig& config_;
  const TensorMap& map_;
  const ParallelConfig& parallel_;
  ExpertPlacement placement_;
};

}  // namespace

RelayoutPlan plan_copy(const Checkpoint& checkpoint) {
  RelayoutPlan plan;
  for (const auto& [name, tensor] : in_file_order(checkpoint)) {
    refuse_gguf(*name, *tensor);
    plan.tensors.push_back(
        {.name = *name, .dtype = tensor->info.dtype, .shape = tensor->info.shape});
    plan.total_bytes += tensor->info.num_bytes();
    add_run(plan, plan.tensors.size() - 1, 0, *tensor, 0, tensor->info.num_bytes());
  }
  return plan;
}

std::vector<ShardPlan> shards_by_rank(const RelayoutPlan& plan, const MoeModelConfig& config,
                                      const TensorMap& map, int ep_size,
                                      const ExpertPlacement& placement, int64_t shard_bytes) {
  std::vector<std::vector<TensorInfo>> groups(static_cast<size_t>(ep_size) + 1);
  for (const TensorInfo& tensor : plan.tensors) {
    const std::optional<TensorRef> ref = expert_tensor_ref(tensor.name, config, map);
    const MoeLayerSpec* spec = ref ? config.find_layer(ref->layer) : nullptr;
    if (spec == nullptr || ref->expert >= spec->num_experts) {
      groups.back().push_back(tensor);
      continue;
    }
    GANTRY_CHECK(ref->expert >= 0, ErrorCode::kUnsupported,
                 "{}: holds experts of several ranks; unfuse the checkpoint first", tensor.name);
    const ExpertMap owners = map_without_replicas(placement, *spec, ep_size);
    groups[static_cast<size_t>(owners.computing_rank(ref->expert))].push_back(tensor);
  }
  std::vector<ShardPlan> shards;
  for (size_t g = 0; g < groups.size(); ++g) {
    if (groups[g].empty()) continue;
    const std::string stem = g + 1 == groups.size()
                                 ? std::string("model-common")
                                 : fmt::format("model-ep-{:05}-of-{:05}", g, ep_size);
    std::vector<ShardPlan> files = plan_shards(std::move(groups[g]), shard_bytes);
    for (size_t f = 0; f < files.size(); ++f) {
      files[f].file = files.size() == 1
                          ? fmt::format("{}.safetensors", stem)
                          : fmt::format("{}-{:05}-of-{:05}.safetensors", stem, f + 1, files.size());
      shards.push_back(std::move(files[f]));
    }
  }
  return shards;
}

RelayoutPlan plan_rank(const Checkpoint& checkpoint, const MoeModelConfig& config,
                       const TensorMap& map, const ParallelConfig& parallel,
                       const ExpertPlacement& placement) {
  validate(parallel);
  RelayoutPlan plan;
  const RankPlanner planner(checkpoint, config, map, parallel, placement);
  for (const auto& [name, tensor] : in_file_order(checkpoint))
    planner.add(*name, *tensor, plan);
  return plan;
}

std::map<std::string, std::string> rank_metadata(const ParallelConfig& parallel,
                                                 const ExpertPlacement& placement) {
  return {{"format", "pt"},
          {"tp_size", std::to_string(parallel.tp_size)},
          {"tp_rank", std::to_string(parallel.tp_rank())},
          {"ep_size", std::to_string(parallel.ep_size)},
          {"ep_rank", std::to_string(parallel.ep_rank())},
          {"placement", placement.describe()}};
}

}  // namespace gantry
