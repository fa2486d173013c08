#include "loader/weight_loader.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/log_format.h"
#include "loader/encoded_job.h"
#include "loader/expert_formats.h"
#include "loader/input_scale_job.h"
#include "loader/input_scales.h"
#include "loader/input_transforms.h"
#include "loader/read_job.h"

namespace gantry {
namespace {

// Jobs are handed to readers in runs of consecutive file positions, about this much at a time:
// large enough to read sequentially, small enough to keep all readers busy to the end.
constexpr int64_t kBatchBytes = int64_t{16} << 20;
constexpr int64_t kMaxEncodedRun = 16;

std::vector<std::pair<size_t, size_t>> batches(const std::vector<ReadJob>& jobs) {
  std::vector<std::pair<size_t, size_t>> runs;
  size_t begin = 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < jobs.size(); ++i) {
    bytes += bytes_to_read(jobs[i]);
    if (bytes >= kBatchBytes || i + 1 == jobs.size()) {
      runs.emplace_back(begin, i + 1);
      begin = i + 1;
      bytes = 0;
    }
  }
  return runs;
}

class SmallTensorReader {
 public:
  SmallTensorReader(const Checkpoint& checkpoint, const LayerTensors& tensors,
                    const LoadOptions& options, LoadReport& report, LoadStats& stats)
      : checkpoint_(checkpoint),
        tensors_(tensors),
        options_(options),
        report_(report),
        stats_(stats) {}

  // The whole tensor as f32, or an empty buffer if the layer has none.
  Buffer<float> floats(Part part, TensorKind kind = TensorKind::kWeight) {
    const TensorSource* source = tensors_.single(part, kind);
    if (source == nullptr) return {};
    const std::vector<uint32_t> raw = read(*source);
    const TensorInfo& info = source->tensor->info;
    Buffer<float> values(static_cast<size_t>(info.num_elements()));
    convert_to_f32(raw.data(), info.dtype, info.num_elements(), values.data());
    const int64_t bad = find_non_finite(values.data(), DType::kF32, info.num_elements());
    if (options_.check_finite && bad >= 0) {
      report_non_finite(checkpoint_, *source, -1, bad, values[static_cast<size_t>(bad)], report_);
    }
    stats_.bytes_owned += info.num_elements() * 4;
    return values;
  }

  Buffer<int32_t> expert_ids(Part part, int num_experts) {
    const TensorSource* source = tensors_.single(part, TensorKind::kWeight);
    if (source == nullptr) return {};
    const std::vector<uint32_t> raw = read(*source);
    const TensorInfo& info = source->tensor->info;
    Buffer<int32_t> ids(static_cast<size_t>(info.num_elements()));
    for (size_t i = 0; i < ids.size(); ++i) {
      int64_t id = 0;
      if (info.dtype == DType::kI64) {
        std::memcpy(&id, reinterpret_cast<const std::byte*>(raw.data()) + i * 8, 8);
      } else {
        id = static_cast<int32_t>(raw[i]);
      }
      if (id < 0 || id >= num_experts) {
        const std::string file = checkpoint_.file_name(*source->tensor);
        report_.add({FindingKind::kValue,
                     fmt::format("{}: element {}: expected an expert id below {}, found {} ({})",
                                 source->name, i, num_experts, id, file),
                     source->name, file, source->ref.layer, -1, std::string(to_string(part))});
        return {};
      }
      ids[i] = static_cast<int32_t>(id);
    }
    stats_.bytes_owned += info.num_elements() * 4;
    return ids;
  }

 private:
  std::vector<uint32_t> read(const TensorSource& source) {
    const CheckpointTensor& tensor = *source.tensor;
    const int64_t bytes = tensor.info.num_bytes();
    std::vector<uint32_t> raw(static_cast<size_t>((bytes + 3) / 4));
    checkpoint_.files()[static_cast<size_t>(tensor.file)].read(tensor.info.begin, raw.data(),
                                                               bytes);
    stats_.bytes_read += bytes;
    if (options_.progress) options_.progress(bytes);
    return raw;
  }

  const Checkpoint& checkpoint_;
  const LayerTensors& tensors_;
  const LoadOptions& options_;
  LoadReport& report_;
  LoadStats& stats_;
};

// Slots of one dtype: f32 where matrices differ in type, as GGUF files have them.
DType expert_dtype(const LayerTensors& tensors) {
  const DType dtype = tensors.expert_source(0, Part::kW2, TensorKind::kWeight)->tensor->info.dtype;
  for (size_t e = 0; e < tensors.experts.size(); ++e) {
    for (const auto& part : tensors.experts[e].parts) {
      if (part[0] != nullptr && part[0]->tensor->info.dtype != dtype) return DType::kF32;
    }
  }
  return dtype;
}

DType shared_dtype(const LayerTensors& tensors) {
  if (tensors.has_encoded_shared()) return DType::kF32;
  const DType dtype = tensors.single(Part::kSharedW2, TensorKind::kWeight)->tensor->info.dtype;
  for (const Part part : {Part::kSharedW1, Part::kSharedW3}) {
    const TensorSource* source = tensors.single(part, TensorKind::kWeight);
    if (source != nullptr && source->tensor->info.dtype != dtype) return DType::kF32;
  }
  return dtype;
}

}  // namespace

int64_t MoeLayerWeights::owned_bytes() const noexcept {
  const auto floats = router.size() + router_bias.size() + correction_bias.size() +
                      per_expert_scale.size() + router_scale.size() + hash_table.size() +
                      output_norm.size() + shared_gate.size() + latent_in.size() +
                      latent_out.size() + latent_in_bias.size() + latent_out_bias.size();
  return static_cast<int64_t>(slots.size() + shared.size() + floats * sizeof(float));
}

std::string infeasible_reason(const MoeLayerSpec& layer, int tp_size, int ep_size) {
  if (tp_size > layer.intermediate_size) {
    return fmt::format("tp {} > intermediate size {}", tp_size, layer.intermediate_size);
  }
  if (layer.shared.intermediate_size > 0 && tp_size > layer.shared.intermediate_size) {
    return fmt::format("tp {} > shared intermediate size {}", tp_size,
                       layer.shared.intermediate_size);
  }
  if (ep_size > layer.num_experts) {
    return fmt::format("ep {} > {} experts", ep_size, layer.num_experts);
  }
  return "";
}

void WeightLoader::set_expert_layout(MoeLayerWeights& weights, const LayerTensors& tensors,
                                     bool gpu, LoadDestination& destination) const {
  const MoeLayerSpec& spec = weights.spec;
  const ParallelConfig& parallel = weights.parallel;
  const int64_t h = spec.expert_hidden_size;
  const bool static_inputs = weights.activations.format.is_static();
  const auto own_size = [&] {
    return split_in_units(spec.intermediate_size, weights.cut_unit, parallel.tp_size,
                          parallel.tp_rank())
        .size();
  };
  if (!tensors.has_encoded_experts()) {
    weights.layout = SlotLayout::create(expert_dtype(tensors), spec.gated(), tensors.expert_bias,
                                        own_size(), h, static_inputs);
    return;
  }
  const ExpertFormats formats =
      expert_formats(*checkpoint_, *config_->family, spec, tensors, {parallel, gpu});
  weights.cut_unit = formats.cut_unit;
  if (!formats.reason.empty()) {
    log(LogLevel::kInfo, "layer {}: quantized experts are decoded to f32: {}", spec.layer,
        formats.reason);
    weights.layout = SlotLayout::create(DType::kF32, spec.gated(), tensors.expert_bias, own_size(),
                                        h, static_inputs);
    return;
  }
  destination.transforms = formats.transforms;
  destination.whole_w2 = formats.whole_w2;
  const InputTransforms& inputs = formats.transforms->sections;
  log(LogLevel::kInfo, "layer {}: experts: w13 {}{}, w2 {}{}", spec.layer, to_string(formats.w13),
      inputs.order     ? " in activation order"
      : inputs.factors ? " after pre_quant_scale"
                       : "",
      to_string(formats.w2), inputs.mid_factors ? " after pre_quant_scale" : "");
  weights.layout = SlotLayout::create(formats.w13, formats.w2, spec.gated(), tensors.expert_bias,
                                      own_size(), h, static_inputs, inputs);
}

void WeightLoader::set_shared_layout(MoeLayerWeights& weights, const LayerTensors& tensors,
                                     bool gpu, LoadDestination& destination) const {
  const MoeLayerSpec& spec = weights.spec;
  const ParallelConfig& parallel = weights.parallel;
  const bool gated = is_gated(spec.shared.activation.kind);
  const auto own_size = [&] {
    return split_in_units(spec.shared.intermediate_size, destination.shared_cut_unit,
                          parallel.tp_size, parallel.tp_rank())
        .size();
  };
  if (tensors.has_encoded_shared()) {
    const ExpertFormats formats = shared_formats(spec, tensors, {parallel, gpu});
    destination.shared_cut_unit = formats.cut_unit;
    if (formats.reason.empty()) {
      log(LogLevel::kInfo, "layer {}: shared experts: w13 {}, w2 {}", spec.layer,
          to_string(formats.w13), to_string(formats.w2));
      destination.shared_whole_w2 = formats.whole_w2;
      weights.shared_layout = SlotLayout::create(formats.w13, formats.w2, gated,
                                                 tensors.shared_bias, own_size(), spec.hidden_size);
      return;
    }
    log(LogLevel::kInfo, "layer {}: quantized shared experts are decoded to f32: {}", spec.layer,
        formats.reason);
  }
  weights.shared_layout = SlotLayout::create(shared_dtype(tensors), gated, tensors.shared_bias,
                                             own_size(), spec.hidden_size);
}

MoeLayerWeights WeightLoader::allocate(const MoeLayerSpec& spec, const ParallelConfig& parallel,
                                       const ExpertMap& experts, const LoadOptions* options,
                                       LoadDestination& destination) const {
  const LayerTensors& tensors = tensors_->layer(spec.layer);
  const std::string reason = infeasible_reason(spec, parallel.tp_size, parallel.ep_size);
  GANTRY_CHECK(reason.empty(), ErrorCode::kInvalidArgument, "layer {} cannot be split: {}",
               spec.layer, reason);
  GANTRY_CHECK(experts.num_experts() == spec.num_experts && experts.ep_size() == parallel.ep_size,
               ErrorCode::kInvalidArgument,
               "layer {}: expected an expert map for {} experts on {} ranks, found {} on {}",
               spec.layer, spec.num_experts, parallel.ep_size, experts.num_experts(),
               experts.ep_size());
  MoeLayerWeights weights;
  weights.spec = spec;
  weights.parallel = parallel;
  weights.activations = layer_activations(tensors, spec);
  const bool gpu = options != nullptr && options->gpu;
  set_expert_layout(weights, tensors, gpu, destination);
  weights.num_slots = experts.num_slots(parallel.ep_rank());
  const bool with_memory = options != nullptr;
  const auto slot_bytes = static_cast<size_t>(weights.num_slots * weights.layout.stride_bytes);
  if (with_memory && options->slot_pool != nullptr) {
    weights.slots = options->slot_pool->take(weights.layout, slot_bytes);
  } else if (with_memory) {
    weights.slots = ByteBuffer(slot_bytes);
  }
  destination.loads_shared = spec.shared.intermediate_size > 0 && parallel.leads_dp_group();
  if (destination.loads_shared) {
    set_shared_layout(weights, tensors, gpu, destination);
    if (with_memory) {
      weights.shared = ByteBuffer(static_cast<size_t>(weights.shared_layout.stride_bytes));
    }
  }
  destination.layout = weights.layout;
  destination.activations = weights.activations;
  destination.slots = with_memory ? weights.slots.data() : nullptr;
  destination.cut_unit = weights.cut_unit;
  destination.shared_layout = weights.shared_layout;
  destination.shared = with_memory ? weights.shared.data() : nullptr;
  return weights;
}

LoadPlan WeightLoader::plan(int layer, const ParallelConfig& parallel,
                            const ExpertMap& experts) const {
  const MoeLayerSpec* spec = config_->find_layer(layer);
  GANTRY_CHECK(spec != nullptr, ErrorCode::kInvalidArgument, "layer {} is not a MoE layer", layer);
  LoadDestination destination;
  (void)allocate(*spec, parallel, experts, /*options=*/nullptr, destination);
  LoadLedger ledger;
  return plan_layer(*spec, *config_->family, tensors_->layer(layer), parallel, experts, destination,
                    ledger);
}

void WeightLoader::load_small_tensors(MoeLayerWeights& weights, const LoadOptions& options,
                                      LoadReport& report, LoadStats& stats) const {
  SmallTensorReader reader(*checkpoint_, tensors_->layer(weights.spec.layer), options, report,
                           stats);
  weights.router = reader.floats(Part::kRouter);
  weights.router_bias = reader.floats(Part::kRouter, TensorKind::kBias);
  weights.correction_bias = reader.floats(Part::kCorrectionBias);
  weights.per_expert_scale = reader.floats(Part::kPerExpertScale);
  weights.router_scale = reader.floats(Part::kRouterScale);
  weights.output_norm = reader.floats(Part::kOutputNorm);
  weights.hash_table = reader.expert_ids(Part::kHashTable, weights.spec.num_experts);
  weights.shared_gate = reader.floats(Part::kSharedGate);
  weights.latent_in = reader.floats(Part::kLatentIn);
  weights.latent_out = reader.floats(Part::kLatentOut);
  weights.latent_in_bias = reader.floats(Part::kLatentIn, TensorKind::kBias);
  weights.latent_out_bias = reader.floats(Part::kLatentOut, TensorKind::kBias);
}

MoeLayerWeights WeightLoader::load_layer(int layer, const ParallelConfig& parallel,
                                         const ExpertMap& experts, const LoadOptions& options,
                                         LoadReport& report, LoadStats& stats) const {
  const auto start = std::chrono::steady_clock::now();
  const MoeLayerSpec* spec = config_->find_layer(layer);
  GANTRY_CHECK(spec != nullptr, ErrorCode::kInvalidArgument, "layer {} is not a MoE layer", layer);
  for (const FindingKind kind : options.allow)
    report.allow(kind);
  LoadDestination destination;
  MoeLayerWeights weights = allocate(*spec, parallel, experts, &options, destination);
  LoadLedger ledger;
  const LoadPlan plan = plan_layer(*spec, *config_->family, tensors_->layer(layer), parallel,
                                   experts, destination, ledger);
  const auto runs = batches(plan.jobs);
  std::atomic<int64_t> bytes_read = 0;
  parallel_for(options.threads, static_cast<int64_t>(runs.size()), [&](int64_t task) {
    const auto [begin, end] = runs[static_cast<size_t>(task)];
    for (size_t i = begin; i < end; ++i) {
      bytes_read += run_read_job(*checkpoint_, plan.jobs[i], options, ledger, report);
    }
  });
  const LayerTensors& tensors = tensors_->layer(layer);
  // Quantized matrices in runs too, for the memory that they share, but short ones: they are large.
  const auto num_encoded = static_cast<int64_t>(plan.encoded_jobs.size());
  const int64_t run = std::clamp<int64_t>(
      num_encoded / (4 * int64_t{options.threads.resolved_count()}), 1, kMaxEncodedRun);
  parallel_for(options.threads, (num_encoded + run - 1) / run, [&](int64_t task) {
    ReadScratch scratch;
    for (int64_t i = task * run; i < std::min(num_encoded, (task + 1) * run); ++i) {
      bytes_read += run_encoded_job(*checkpoint_, *config_, *spec, tensors,
                                    plan.encoded_jobs[static_cast<size_t>(i)], options, scratch,
                                    ledger, report);
    }
  });
  for (const InputScaleJob& job : plan.input_scale_jobs) {
    bytes_read += run_input_scale_job(*checkpoint_, layer, job, weights.activations,
                                      options.check_finite, ledger, report);
  }
  for (const TransformJob& job : plan.transform_jobs)
    run_transform_job(job, weights.layout, ledger);
  ledger.finish(report);

  LoadStats own;
  own.bytes_read = bytes_read;
  if (options.check_finite) own.bytes_read += check_input_scales(*checkpoint_, tensors, report);
  own.bytes_owned = plan.bytes_owned;
  load_small_tensors(weights, options, report, own);
  own.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  stats += own;
  return weights;
}

}  // namespace gantry
