#include "tools/awq_scaling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string_view>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/log_format.h"
#include "kernels/quant/awq.h"
#include "loader/expected_tensors.h"
#include "loader/matrix_reader.h"
#include "runtime/calibration.h"

namespace gantry::cli {
namespace {

constexpr std::string_view kNorm = "post_attention_layernorm";

// Models with y = x / rms(x) * weight in `kNorm`, which reads x only, and whose residual does not
// take y (as that of MiniMax-Text-01 and FlexOlmo does).
constexpr std::array<std::string_view, 13> kPlainNormModels = {
    "mixtral",  "qwen2_moe",   "qwen3_moe",    "qwen3_vl_moe", "qwen3_vl_moe_text",
    "olmoe",    "deepseek_v2", "deepseek_v3",  "deepseek_v32", "kimi_k2",
    "glm4_moe", "dots1",       "ernie4_5_moe",
};

// Rows of w1, and of w3, of each expert that a layer's search looks at.
constexpr int64_t kSampleRows = 64;

bool reads_block_input(const TensorRef& ref) {
  if (ref.kind == TensorKind::kBias) return false;
  switch (ref.part) {
    case Part::kRouter:
    case Part::kSharedW1:
    case Part::kSharedW3:
    case Part::kSharedW13:
    case Part::kSharedGate:
      return true;
    default:
      return false;
  }
}

// Parts of which it is known what they read.
bool is_understood(const TensorRef& ref) {
  return reads_block_input(ref) || ref.kind == TensorKind::kBias || is_expert_part(ref.part) ||
         ref.part == Part::kCorrectionBias || ref.part == Part::kSharedW2;
}

bool is_linear_in_up(const MoeLayerSpec& spec) {
  const ActivationSpec& activation = spec.activation;
  if (!spec.gated() || spec.expert_bias) return false;
  switch (activation.kind) {
    case Activation::kSilu:
      return activation.limit == 0.0F;
    case Activation::kGelu:
    case Activation::kGeluTanh:
    case Activation::kRelu2:
      return true;
    case Activation::kSitu:
      return activation.linear_beta == 0.0F;
    default:
      return false;
  }
}

std::vector<float> diagonal_of(std::span<const float> hessian, int64_t n) {
  std::vector<float> diagonal(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    diagonal[static_cast<size_t>(i)] = hessian[static_cast<size_t>(i * n + i)];
  return diagonal;
}

std::vector<float> sampled_rows(const std::vector<float>& weights, int64_t in) {
  const int64_t out = static_cast<int64_t>(weights.size()) / in;
  const int64_t count = std::min(out, kSampleRows);
  std::vector<float> rows;
  for (int64_t r = 0; r < count; ++r) {
    const float* row = weights.data() + r * out / count * in;
    rows.insert(rows.end(), row, row + in);
  }
  return rows;
}

// The largest magnitudes of an expert's inputs, [n].
std::vector<float> read_channel_amax(const std::filesystem::path& directory,
                                     const MoeLayerSpec& spec, int expert, bool down) {
  const SafetensorsFile file(directory / calibration_file_name(spec.layer));
  const std::string name = down ? "down.channel_amax" : "gate_up.channel_amax";
  const int64_t n = part_size(down ? Part::kW2 : Part::kW1, spec).in;
  const TensorInfo* info = file.find(name);
  GANTRY_CHECK(info != nullptr && info->dtype == DType::kF32 &&
                   info->shape == std::vector<int64_t>({spec.num_experts, n}),
               ErrorCode::kFormat, "{}: expected {} [{}, {}] f32, found {}", file.path().string(),
               name, spec.num_experts, n, info == nullptr ? "nothing" : describe(*info));
  std::vector<float> amax(static_cast<size_t>(n));
  file.read(info->begin + expert * n * 4, amax.data(), n * 4);
  return amax;
}

float scaled_amax(std::span<const float> amax, std::span<const float> scales) {
  float largest = 0.0F;
  for (size_t i = 0; i < amax.size(); ++i)
    largest = std::max(largest, amax[i] / scales[i]);
  return std::isfinite(largest) ? largest : 0.0F;
}

}  // namespace

std::string foldable_norm(const MoeModel& model, const MoeLayerSpec& spec, std::string& reason) {
  const std::string& type = model.config().model_type;
  if (std::find(kPlainNormModels.begin(), kPlainNormModels.end(), type) == kPlainNormModels.end()) {
    reason = fmt::format("what reads the norm in front of it is not known of {}", type);
    return {};
  }
  const NameMap& names = model.tensors().names();
  std::string norm =
      fmt::format("{}{}.{}.{}.weight", names.prefix(), names.family().container, spec.layer, kNorm);
  const CheckpointTensor* tensor = model.checkpoint().find(norm);
  if (tensor == nullptr || !is_plain_float(tensor->info.dtype) ||
      tensor->info.num_elements() != spec.hidden_size || spec.has_latent()) {
    reason = fmt::format("no {} [{}] of floats", norm, spec.hidden_size);
    return {};
  }
  for (const auto& [name, found] : model.checkpoint().tensors()) {
    const ParsedName parsed = names.parse(name);
    if (parsed.name_class != NameClass::kMoe || parsed.ref.layer != spec.layer) continue;
    if (is_understood(parsed.ref)) continue;
    reason = fmt::format("{} ({}) may read the norm", name, to_string(parsed.ref.part));
    return {};
  }
  return norm;
}

AwqScaling::AwqScaling(const MoeModel& model, const QuantizePlan& plan,
                       const StatsHessians& hessians, std::filesystem::path stats,
                       const Threads& threads)
    : model_(model), plan_(plan), hessians_(hessians), stats_(std::move(stats)) {
  for (const MoeLayerSpec& spec : model.config().layers) {
    Layer layer = search(spec, threads);
    for (int e = 0; e < spec.num_experts && plan.format.static_inputs(); ++e) {
      const std::vector<float> amax = read_channel_amax(stats_, spec, e, /*down=*/false);
      layer.amax = std::max(layer.amax, scaled_amax(amax, layer.scales));
    }
    layers_.emplace(spec.layer, std::move(layer));
    if (!keeps_factors() && !is_linear_in_up(spec)) {
      log(LogLevel::kInfo,
          "layer {}: AWQ: inputs of w2 stay unscaled: the activation is not linear in w3's output",
          spec.layer);
    }
  }
}

AwqScaling::Layer AwqScaling::search(const MoeLayerSpec& spec, const Threads& threads) const {
  const auto n = static_cast<size_t>(spec.expert_hidden_size);
  Layer layer{.norm = {}, .scales = std::vector<float>(n, 1.0F)};
  std::string reason;
  std::string norm = keeps_factors() ? "" : foldable_norm(model_, spec, reason);
  if (norm.empty() && !keeps_factors()) {
    log(LogLevel::kInfo, "layer {}: AWQ: inputs of w1 and w3 stay unscaled: {}", spec.layer,
        reason);
    return layer;
  }
  std::vector<float> squares(n, 0.0F);
  const int num_hessians = hessians_.shares_gate_up(spec) ? 1 : spec.num_experts;
  for (int e = 0; e < num_hessians; ++e) {
    const std::vector<float> hessian = hessians_.read(spec, e, /*down=*/false);
    if (hessian.empty()) continue;
    const std::vector<float> diagonal = diagonal_of(hessian, spec.expert_hidden_size);
    for (size_t i = 0; i < n; ++i)
      squares[i] += diagonal[i];
  }
  std::vector<std::vector<float>> candidates = candidates_of(squares, /*powers_of_two=*/true);
  if (candidates.size() == 1) return layer;
  const std::vector<double> errors = candidate_errors(spec, candidates, threads);
  const auto best = std::min_element(errors.begin(), errors.end()) - errors.begin();
  if (best > 0) {
    layer.norm = std::move(norm);
    layer.scales = std::move(candidates[static_cast<size_t>(best)]);
  }
  log(LogLevel::kInfo, "layer {}: AWQ: inputs of w1 and w3: {:.3f} of the error without scales{}",
      spec.layer, errors[0] > 0.0 ? std::sqrt(errors[static_cast<size_t>(best)] / errors[0]) : 1.0,
      best > 0 && !keeps_factors() ? fmt::format(", folded into {}", layer.norm) : "");
  return layer;
}

bool AwqScaling::keeps_factors() const noexcept {
  return plan_.format.matrix.find(ExportRole::kInputFactors) != nullptr;
}

// Factors are stored in bf16: scales are the inverse of such a number.
std::vector<std::vector<float>> AwqScaling::candidates_of(std::span<const float> squares,
                                                          bool powers_of_two) const {
  if (!keeps_factors()) return awq_candidates(squares, powers_of_two);
  std::vector<std::vector<float>> candidates = awq_candidates(squares, /*powers_of_two=*/false);
  for (std::vector<float>& scales : candidates) {
    for (float& scale : scales)
      scale = 1.0F / bf16_to_f32(f32_to_bf16(1.0F / scale));
  }
  return candidates;
}

std::vector<double> AwqScaling::candidate_errors(const MoeLayerSpec& spec,
                                                 const std::vector<std::vector<float>>& candidates,
                                                 const Threads& threads) const {
  const int64_t in = spec.expert_hidden_size;
  const bool shared = hessians_.shares_gate_up(spec);
  std::unique_ptr<OutputError> common;
  if (shared) common = std::make_unique<OutputError>(hessians_.read(spec, 0, /*down=*/false), in);
  const MatrixReader reader(model_.checkpoint(), model_.config(), model_.tensors());
  std::vector<std::vector<double>> errors(static_cast<size_t>(spec.num_experts));
  parallel_for(threads, spec.num_experts, [&](int64_t e) {
    const int expert = static_cast<int>(e);
    std::unique_ptr<OutputError> own;
    if (!shared) {
      const std::vector<float> hessian = hessians_.read(spec, expert, /*down=*/false);
      if (hessian.empty()) return;  // it has nothing to say
      own = std::make_unique<OutputError>(hessian, in);
    }
    std::vector<float> rows;
    for (const Part part : {Part::kW1, Part::kW3}) {
      if (part == Part::kW3 && !spec.gated()) continue;
      const std::vector<float> sample = sampled_rows(reader.read(spec.layer, expert, part), in);
      rows.insert(rows.end(), sample.begin(), sample.end());
    }
    errors[static_cast<size_t>(e)] =
        awq_errors(plan_.format.matrix.quantization, rows, static_cast<int64_t>(rows.size()) / in,
                   in, own ? *own : *common, candidates);
  });
  std::vector<double> sums(candidates.size(), 0.0);
  for (const std::vector<double>& one : errors) {
    for (size_t c = 0; c < one.size(); ++c)
      sums[c] += one[c];
  }
  return sums;
}

const std::vector<float>& AwqScaling::input_scales(int layer) const {
  return layers_.at(layer).scales;
}

std::vector<float> AwqScaling::factors_of(const std::string& tensor) const {
  const ParsedName parsed = model_.tensors().names().parse(tensor);
  if (parsed.name_class == NameClass::kMoe) {
    const auto found = layers_.find(parsed.ref.layer);
    const bool scaled = found != layers_.end() && !found->second.norm.empty();
    return scaled && reads_block_input(parsed.ref) ? found->second.scales : std::vector<float>();
  }
  for (const auto& [number, layer] : layers_) {
    if (layer.norm != tensor) continue;
    std::vector<float> inverse = layer.scales;
    for (float& scale : inverse)
      scale = 1.0F / scale;
    return inverse;
  }
  return {};
}

std::vector<float> AwqScaling::down_scales(const MoeLayerSpec& spec, std::span<const float> w2,
                                           std::span<const float> hessian) const {
  const int64_t in = spec.intermediate_size;
  std::vector<float> ones(static_cast<size_t>(in), 1.0F);
  if (hessian.empty() || (!keeps_factors() && !is_linear_in_up(spec))) return ones;
  // Rows of w3 keep their codes where any factor can go into their scales; exponents alone can take
  // up powers of two.
  const bool exponents = plan_.format.matrix.quantization.scale == ScaleType::kE8M0;
  std::vector<std::vector<float>> candidates = candidates_of(diagonal_of(hessian, in), exponents);
  const std::vector<double> errors =
      awq_errors(plan_.format.matrix.quantization, w2, static_cast<int64_t>(w2.size()) / in, in,
                 OutputError(hessian, in), candidates);
  const auto best = std::min_element(errors.begin(), errors.end()) - errors.begin();
  return std::move(candidates[static_cast<size_t>(best)]);
}

float AwqScaling::gate_up_amax(int layer) const { return layers_.at(layer).amax; }

float AwqScaling::down_amax(const MoeLayerSpec& spec, int expert,
                            std::span<const float> scales) const {
  return scaled_amax(read_channel_amax(stats_, spec, expert, /*down=*/true), scales);
}

}  // namespace gantry::cli
