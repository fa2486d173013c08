#include "loader/load_plan.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/base/check.h"
#include "loader/encoded_job.h"
#include "loader/expected_tensors.h"
#include "loader/input_transforms.h"

// For every destination of this rank the plan finds the tensor that provides it and the strided
// piece of it. Pieces of one expert's slab of one tensor are read together: a fused gate_up tensor
// is read once for both halves.

namespace gantry {
namespace {

// The part of a matrix [out, in] that a TP rank owns: rows of w1 and w3, columns of w2. Bias of w2
// is whole (it is added by TP rank 0 only).
struct PartSlice {
  Slice out;
  Slice in;
};

PartSlice tp_slice(Part part, TensorKind kind, const MatrixSize& size, const Slice& intermediate) {
  PartSlice slice{{0, size.out}, {0, size.in}};
  if (part == Part::kW2) {
    if (kind == TensorKind::kWeight) slice.in = intermediate;
  } else {
    slice.out = intermediate;
  }
  return slice;
}

PlannedCopy make_copy(const FileView& view, const PartSlice& slice) {
  PlannedCopy copy;
  const int64_t first = view.offset - view.slab_offset + slice.out.begin * view.out_stride +
                        slice.in.begin * view.in_stride;
  copy.outer_begin = first / view.slab_cols;
  copy.inner_begin = first % view.slab_cols;
  copy.outer_is_row = view.rows_are_out;
  const int64_t outer_stride = copy.outer_is_row ? view.out_stride : view.in_stride;
  copy.outer_step = std::max<int64_t>(1, outer_stride / view.slab_cols);
  copy.outer_count = copy.outer_is_row ? slice.out.size() : slice.in.size();
  copy.inner_step = copy.outer_is_row ? view.in_stride : view.out_stride;
  copy.inner_count = copy.outer_is_row ? slice.in.size() : slice.out.size();
  return copy;
}

class Planner {
 public:
  Planner(const MoeLayerSpec& layer, const FamilySpec& family, LoadLedger& ledger)
      : layer_(layer), family_(family), ledger_(ledger) {}

  // One part of one expert, for every slot that holds a copy of it.
  void add(const TensorSource& source, Part slot_part, Part file_part, TensorKind kind, int expert,
           const Slice& intermediate, const SlotLayout& layout, std::byte* slots,
           const std::vector<int32_t>& slot_ids) {
    const TensorPattern& pattern = family_.tensors[static_cast<size_t>(source.ref.pattern)];
    const FileView view = file_view(pattern, kind, layer_, file_part, expert);
    const PartSlice slice = tp_slice(slot_part, kind, view.size, intermediate);
    if (slice.out.size() == 0 || slice.in.size() == 0) return;

    ReadJob& job = jobs_[{&source, view.slab_offset}];
    job.source = &source;
    job.expert = expert;
    job.slab_offset = view.slab_offset;
    job.slab_rows = view.slab_rows;
    job.slab_cols = view.slab_cols;
    const SlotTarget target = slot_target(layout, slot_part, kind);
    for (const int32_t slot : slot_ids) {
      PlannedCopy copy = make_copy(view, slice);
      copy.destination_row = target.first_row;
      copy.destination_dtype = target.dtype;
      copy.panels = target.panels;
      if (slots != nullptr) {
        copy.destination = slots + slot * layout.stride_bytes + target.offset;
      }
      copy.ledger_id =
          ledger_.expect({.layer = layer_.layer,
                          .expert = expert,
                          .slot = slot,
                          .part = fmt::format("{} {}", to_string(file_part), to_string(kind)),
                          .tensor = source.name,
                          .units = copy.outer_count,
                          .unit_bytes = copy.inner_count * size_of(target.dtype)});
      job.copies.push_back(copy);
    }
  }

  // A quantized matrix of one expert, or (-1) of the shared experts: decoded whole, then cut.
  // `transform` is the expert's, or null; `whole_w2` w2's format before it is cut.
  void add_encoded(const LayerTensors& tensors, Part slot_part, Part part, int expert,
                   const Slice& intermediate, const SlotLayout& layout, std::byte* slots,
                   const std::vector<int32_t>& slot_ids, const WeightFormat& whole_w2,
                   const ExpertTransform* transform = nullptr) {
    const PartSlice slice =
        tp_slice(slot_part, TensorKind::kWeight, part_size(part, layer_), intermediate);
    if (slice.out.size() == 0 || slice.in.size() == 0) return;
    EncodedJob job;
    job.expert = expert;
    job.part = part;
    job.out = slice.out;
    job.in = slice.in;
    if (transform != nullptr) {
      const bool is_w2 = slot_part == Part::kW2;
      const auto& columns = is_w2 ? transform->mid_order : transform->x_order;
      if (!columns.empty()) job.column_order = &columns;
      if (!is_w2 && !transform->mid_order.empty()) job.row_order = &transform->mid_order;
    }
    job.target = slot_target(layout, slot_part, TensorKind::kWeight);
    job.format = slot_part == Part::kW2 ? whole_w2 : job.target.panels->format;
    PackedLayout shard = *job.target.panels;  // as if the part stood alone
    shard.gated = false;
    shard.n = slice.out.size();
    const int64_t job_bytes = shard.owned_bytes();
    for (const int32_t slot : slot_ids) {
      const int64_t id = ledger_.expect({.layer = layer_.layer,
                                         .expert = expert,
                                         .slot = slot,
                                         .part = fmt::format("{} quantized", to_string(part)),
                                         .tensor = encoded_sources(tensors, expert, part)[0]->name,
                                         .units = slice.out.size(),
                                         .unit_bytes = job_bytes / slice.out.size()});
      job.destinations.push_back(
          {slots == nullptr ? nullptr : slots + slot * layout.stride_bytes, id});
    }
    bytes_read_ += encoded_bytes(tensors, expert, part);
    bytes_owned_ += job_bytes * static_cast<int64_t>(slot_ids.size());
    encoded_jobs_.push_back(std::move(job));
  }

  // What stands in the slots beside the matrices of one expert.
  void add_transform(const ExpertTransform& transform, int expert, const Slice& intermediate,
                     const LoadDestination& destination, const std::vector<int32_t>& slot_ids) {
    const int64_t bytes = transform_bytes(destination.layout);
    if (bytes == 0) return;
    TransformJob job{.transform = &transform, .intermediate = intermediate, .destinations = {}};
    for (const int32_t slot : slot_ids) {
      const int64_t id = ledger_.expect({.layer = layer_.layer,
                                         .expert = expert,
                                         .slot = slot,
                                         .part = "order and factors of inputs",
                                         .tensor = "g_idx, pre_quant_scale",
                                         .units = 1,
                                         .unit_bytes = bytes});
      std::byte* slots = destination.slots;
      job.destinations.push_back(
          {slots == nullptr ? nullptr : slots + slot * destination.layout.stride_bytes, id});
    }
    bytes_owned_ += bytes * static_cast<int64_t>(slot_ids.size());
    transform_jobs_.push_back(std::move(job));
  }

  // The static scale of a quantized matrix' input.
  void add_input_scale(const LayerTensors& tensors, Part part, int expert,
                       const LoadDestination& destination, const std::vector<int32_t>& slot_ids) {
    input_scale_jobs_.push_back(plan_input_scale(layer_, tensors, expert, part,
                                                 destination.activations, destination.layout,
                                                 destination.slots, slot_ids, ledger_));
    bytes_read_ += bytes_to_read(input_scale_jobs_.back());
    bytes_owned_ += static_cast<int64_t>(slot_ids.size() * sizeof(float));
  }

  LoadPlan finish() {
    LoadPlan plan;
    plan.input_scale_jobs = std::move(input_scale_jobs_);
    plan.encoded_jobs = std::move(encoded_jobs_);
    plan.transform_jobs = std::move(transform_jobs_);
    plan.bytes_read = bytes_read_;
    plan.bytes_owned = bytes_owned_;
    for (auto& [key, job] : jobs_)
      plan.jobs.push_back(std::move(job));
    const auto position = [](const ReadJob& job) {
      const CheckpointTensor& tensor = *job.source->tensor;
      return std::tuple(tensor.file, tensor.info.begin,
                        job.slab_offset * size_of(tensor.info.dtype));
    };
    std::sort(plan.jobs.begin(), plan.jobs.end(),
              [&](const ReadJob& a, const ReadJob& b) { return position(a) < position(b); });
    for (const ReadJob& job : plan.jobs) {
      plan.bytes_read += bytes_to_read(job);
      for (const PlannedCopy& copy : job.copies) {
        plan.bytes_owned += copy.outer_count * copy.inner_count * size_of(copy.destination_dtype);
      }
    }
    return plan;
  }

 private:
  const MoeLayerSpec& layer_;
  const FamilySpec& family_;
  LoadLedger& ledger_;
  std::map<std::pair<const TensorSource*, int64_t>, ReadJob> jobs_;
  std::vector<EncodedJob> encoded_jobs_;
  std::vector<InputScaleJob> input_scale_jobs_;
  std::vector<TransformJob> transform_jobs_;
  int64_t bytes_read_ = 0;
  int64_t bytes_owned_ = 0;
};

}  // namespace

LoadPlan::LoadPlan() = default;
LoadPlan::LoadPlan(LoadPlan&& other) noexcept = default;
LoadPlan& LoadPlan::operator=(LoadPlan&& other) noexcept = default;
LoadPlan::~LoadPlan() = default;

std::vector<RowRange> rows_to_read(const ReadJob& job) {
  std::vector<RowRange> ranges;
  for (const PlannedCopy& copy : job.copies) {
    ranges.push_back(
        {copy.outer_begin, copy.outer_begin + (copy.outer_count - 1) * copy.outer_step + 1});
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const RowRange& a, const RowRange& b) { return a.begin < b.begin; });
  std::vector<RowRange> merged;
  for (const RowRange& range : ranges) {
    if (!merged.empty() && range.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, range.end);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

int64_t bytes_to_read(const ReadJob& job) {
  int64_t rows = 0;
  for (const RowRange& range : rows_to_read(job))
    rows += range.end - range.begin;
  return rows * job.slab_cols * size_of(job.source->tensor->info.dtype);
}

LoadPlan plan_layer(const MoeLayerSpec& layer, const FamilySpec& family,
                    const LayerTensors& tensors, const ParallelConfig& parallel,
                    const ExpertMap& experts, const LoadDestination& destination,
                    LoadLedger& ledger) {
  Planner planner(layer, family, ledger);
  const auto kinds = [](bool bias) {
    return bias ? std::vector{TensorKind::kWeight, TensorKind::kBias}
                : std::vector{TensorKind::kWeight};
  };
  const Slice intermediate = split_in_units(layer.intermediate_size, destination.cut_unit,
                                            parallel.tp_size, parallel.tp_rank());
  for (int expert = 0; expert < layer.num_experts; ++expert) {
    const std::vector<int32_t> slots = experts.slots_of(parallel.ep_rank(), expert);
    if (slots.empty()) continue;
    const ExpertTransform* transform = nullptr;
    if (destination.transforms != nullptr) {
      transform = &destination.transforms->experts[static_cast<size_t>(expert)];
      planner.add_transform(*transform, expert, intermediate, destination, slots);
    }
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !layer.gated()) continue;
      if (destination.layout.static_inputs) {
        planner.add_input_scale(tensors, part, expert, destination, slots);
      }
      for (const TensorKind kind : kinds(tensors.expert_bias)) {
        if (kind == TensorKind::kWeight && tensors.is_encoded(expert, part)) {
          planner.add_encoded(tensors, part, part, expert, intermediate, destination.layout,
                              destination.slots, slots, destination.whole_w2, transform);
          continue;
        }
        planner.add(*tensors.expert_source(expert, part, kind), part, part, kind, expert,
                    intermediate, destination.layout, destination.slots, slots);
      }
    }
  }
  if (destination.loads_shared) {
    const Slice shared_slice =
        split_in_units(layer.shared.intermediate_size, destination.shared_cut_unit,
                       parallel.tp_size, parallel.tp_rank());
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !destination.shared_layout.gated) continue;
      for (const TensorKind kind : kinds(tensors.shared_bias)) {
        if (kind == TensorKind::kWeight && tensors.is_encoded(-1, shared_part(part))) {
          planner.add_encoded(tensors, part, shared_part(part), -1, shared_slice,
                              destination.shared_layout, destination.shared, {0},
                              destination.shared_whole_w2);
          continue;
        }
        planner.add(*tensors.single(shared_part(part), kind), part, shared_part(part), kind, -1,
                    shared_slice, destination.shared_layout, destination.shared, {0});
      }
    }
  }
  LoadPlan plan = planner.finish();
  plan.transforms = destination.transforms;
  return plan;
}

}  // namespace gantry
