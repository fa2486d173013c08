#include "loader/input_scale_job.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/encoded_job.h"

namespace gantry {
namespace {

const TensorSource* find_encoded(const LayerTensors& tensors, int expert, Part part,
                                 const std::string& suffix) {
  const auto& encoded =
      tensors.experts[static_cast<size_t>(expert)].encoded[expert_part_index(part)];
  const auto found = encoded.find(suffix);
  return found == encoded.end() ? nullptr : found->second;
}

// A tensor of one element, in the bytes of its dtype; nothing if it is anything else.
std::optional<std::array<std::byte, 8>> read_scalar(const Checkpoint& checkpoint,
                                                    const TensorSource& source) {
  const TensorInfo& info = source.tensor->info;
  if (source.ref.expert < 0 || info.num_elements() != 1 || info.num_bytes() > 8) return {};
  std::array<std::byte, 8> bytes{};
  checkpoint.files()[static_cast<size_t>(source.tensor->file)].read(info.begin, bytes.data(),
                                                                    info.num_bytes());
  return bytes;
}

// Adds findings about the tensors of one job.
class Problem {
 public:
  Problem(const Checkpoint& checkpoint, int layer, const InputScaleJob& job, LoadReport& report)
      : checkpoint_(checkpoint), layer_(layer), job_(job), report_(report) {}

  void add(FindingKind kind, const TensorSource* source, std::string_view what) const {
    const TensorSource& named = source != nullptr ? *source : *job_.weight;
    const std::string file = checkpoint_.file_name(*named.tensor);
    const std::string part(to_string(job_.part));
    report_.add({kind,
                 fmt::format("{}: {} (layer {}, expert {}, {}; {})", named.name, what, layer_,
                             job_.expert, part, file),
                 named.name, file, layer_, job_.expert, part});
  }

 private:
  const Checkpoint& checkpoint_;
  int layer_;
  const InputScaleJob& job_;
  LoadReport& report_;
};

bool is_zero(const Checkpoint& checkpoint, const TensorSource& zero_point) {
  const auto bytes = read_scalar(checkpoint, zero_point);
  return bytes && std::all_of(bytes->begin(), bytes->end(),
                              [](std::byte byte) { return byte == std::byte{0}; });
}

// The factor for the kernels, or 0 with a finding.
float read_input_scale(const Checkpoint& checkpoint, const InputScaleJob& job,
                       const ActivationScheme& scheme, bool values_are_checked,
                       const Problem& problem) {
  const auto wrong = [&](const TensorSource* source, std::string_view what) {
    problem.add(FindingKind::kInputScale, source, what);
    return 0.0F;
  };
  if (job.source == nullptr) {
    return wrong(nullptr, fmt::format("its {} is missing, and inputs are {}", scheme.scale_suffix,
                                      describe(scheme)));
  }
  const TensorInfo& info = job.source->tensor->info;
  const auto bytes = read_scalar(checkpoint, *job.source);
  if (!bytes || !is_plain_float(info.dtype)) {
    return wrong(job.source, fmt::format("expected one float a projection and expert, found {}",
                                         describe(info)));
  }
  const float stored = load_as_f32(bytes->data(), info.dtype, 0);
  const float scale = scheme.scale_is_inverse ? 1.0F / stored : stored;
  if (!(std::isfinite(scale) && std::isfinite(stored) && scale > 0.0F)) {
    if (values_are_checked) return 0.0F;
    return wrong(job.source, fmt::format("expected an input scale above 0, found {}", stored));
  }
  if (job.zero_point != nullptr && !is_zero(checkpoint, *job.zero_point)) {
    return wrong(job.zero_point, "expected one zero point of 0");
  }
  return scale;
}

}  // namespace

ActivationScheme layer_activations(const LayerTensors& tensors, const MoeLayerSpec& layer) {
  int encoded = 0;
  int matrices = 0;
  const QuantScheme* first = nullptr;
  ActivationScheme refused;
  for (int expert = 0; expert < layer.num_experts; ++expert) {
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !layer.gated()) continue;
      ++matrices;
      const QuantScheme* scheme = tensors.matrices(expert).schemes[expert_part_index(part)];
      if (scheme == nullptr) continue;
      ++encoded;
      if (first == nullptr) first = scheme;
      if (scheme->activations != first->activations) {
        refused.refusal = fmt::format("layer {}: the input of {} of expert {} is {}, others are {}",
                                      layer.layer, to_string(part), expert,
                                      describe(scheme->activations), describe(first->activations));
      }
      if (scheme->activations.declared() &&
          find_encoded(tensors, expert, part, "pre_quant_scale") != nullptr) {
        refused.refusal = fmt::format(
            "layer {}, expert {}: the input of {} has a pre_quant_scale and is quantized after it",
            layer.layer, expert, to_string(part));
      }
    }
  }
  if (first == nullptr || (!first->activations.declared() && refused.refusal.empty())) return {};
  if (encoded < matrices) {
    refused.refusal = fmt::format("layer {}: {} of {} expert matrices are quantized", layer.layer,
                                  encoded, matrices);
  }
  return refused.refusal.empty() ? first->activations : refused;
}

ActivationScheme model_activations(const MoeModelConfig& config, const TensorMap& tensors) {
  for (const MoeLayerSpec& layer : config.layers) {
    ActivationScheme scheme = layer_activations(tensors.layer(layer.layer), layer);
    if (scheme.declared()) return scheme;
  }
  return {};
}

InputScaleJob plan_input_scale(const MoeLayerSpec& layer, const LayerTensors& tensors, int expert,
                               Part part, const ActivationScheme& scheme, const SlotLayout& layout,
                               std::byte* slots, const std::vector<int32_t>& slot_ids,
                               LoadLedger& ledger) {
  InputScaleJob job;
  job.source = find_encoded(tensors, expert, part, scheme.scale_suffix);
  job.zero_point = find_encoded(tensors, expert, part, "input_zero_point");
  job.weight = encoded_sources(tensors, expert, part)[0];
  job.expert = expert;
  job.part = part;
  job.offset = layout.input_scale_offset(part);
  for (const int32_t slot : slot_ids) {
    const int64_t id = ledger.expect({.layer = layer.layer,
                                      .expert = expert,
                                      .slot = slot,
                                      .part = fmt::format("{} input scale", to_string(part)),
                                      .tensor = (job.source ? job.source : job.weight)->name,
                                      .units = 1,
                                      .unit_bytes = sizeof(float)});
    job.destinations.push_back(
        {slots == nullptr ? nullptr : slots + slot * layout.stride_bytes, id});
  }
  return job;
}

int64_t bytes_to_read(const InputScaleJob& job) noexcept {
  int64_t bytes = 0;
  for (const TensorSource* source : {job.source, job.zero_point}) {
    if (source != nullptr) bytes += source->tensor->info.num_bytes();
  }
  return bytes;
}

int64_t run_input_scale_job(const Checkpoint& checkpoint, int layer, const InputScaleJob& job,
                            const ActivationScheme& scheme, bool values_are_checked,
                            LoadLedger& ledger, LoadReport& report) {
  const Problem problem(checkpoint, layer, job, report);
  const float scale = read_input_scale(checkpoint, job, scheme, values_are_checked, problem);
  for (const InputScaleJob::Destination& destination : job.destinations) {
    if (destination.slot != nullptr) {
      std::memcpy(destination.slot + job.offset, &scale, sizeof(scale));
    }
    ledger.record(destination.ledger_id, 0, 1);
  }
  return bytes_to_read(job);
}

}  // namespace gantry
