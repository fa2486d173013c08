#include "runtime/verification.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "loader/input_scale_job.h"

namespace gantry {

double default_tolerance(ActivationDType activations) noexcept {
  switch (activations) {
    case ActivationDType::kBF16:
      return 1e-2;
    case ActivationDType::kInt8:
      return 5e-2;  // 2 steps of 127 on each of the two inputs
    default:
      return 1e-5;
  }
}

double scheme_tolerance(const RowFormat& format, int64_t num_values) noexcept {
  constexpr double kPeak = 8.0;
  constexpr double kSumError = 1e-6;
  double step = 2.0 / 6.0;
  switch (format.kind) {
    case RowQuantization::kNone:
      return default_tolerance(ActivationDType::kScheme);
    case RowQuantization::kInt8Static:
    case RowQuantization::kInt8Token:
      step = 1.0 / 127.0;
      break;
    case RowQuantization::kFp8Static:
    case RowQuantization::kFp8Token:
    case RowQuantization::kFp8Group:
    case RowQuantization::kMxFp8:
      step = 32.0 / 448.0;
      break;
    default:
      break;
  }
  const double one_flip = step * step / static_cast<double>(std::max<int64_t>(1, num_values));
  return default_tolerance(ActivationDType::kScheme) +
         kPeak * std::sqrt(one_flip + 2.0 * kSumError * step);
}

namespace {

ActivationScheme scheme_of(MoeModel& model, const MoeLayerSpec& spec) {
  return layer_activations(model.tensors().layer(spec.layer), spec);
}

double limit_of(MoeModel& model, const MoeLayerSpec& spec, const ReferenceBlock& block,
                const VerifySettings& settings) {
  if (settings.tolerance > 0.0) return settings.tolerance;
  if (settings.activations != ActivationDType::kScheme) {
    return default_tolerance(settings.activations);
  }
  const auto num_tokens = static_cast<int64_t>(block.input.size()) / spec.hidden_size;
  return scheme_tolerance(scheme_of(model, spec).format,
                          num_tokens * spec.routing.top_k * spec.intermediate_size);
}

// What a block should compute. With the checkpoint's scheme that is another output: the one for
// weights alone would say nothing about the quantization of activations.
const std::vector<float>& expected_output(MoeModel& model, const MoeLayerSpec& spec,
                                          const ReferenceBlock& block,
                                          ActivationDType activations) {
  if (activations != ActivationDType::kScheme) return block.output;
  if (!block.output_act_quant.empty()) return block.output_act_quant;
  const ActivationScheme scheme = scheme_of(model, spec);
  GANTRY_CHECK(!scheme.format.quantizes(), ErrorCode::kInvalidArgument,
               "layer {}: activations are quantized ({}), but the reference has no "
               "{}.output_act_quant to compare with",
               spec.layer, describe(scheme), block.name);
  return block.output;
}

}  // namespace

VerifyResult verify_model(MoeModel& model, const Reference* reference,
                          const VerifySettings& settings,
                          const std::function<void(const BlockResult&)>& on_block) {
  GANTRY_CHECK(settings.ranks.device == nullptr || settings.activations == ActivationDType::kBF16,
               ErrorCode::kUnsupported, "GPU kernels take bf16 activations, found {}",
               to_string(settings.activations));
  VerifyResult verified;
  for (const MoeLayerSpec& spec : model.config().layers) {
    const ReferenceBlock* block = nullptr;
    LayerBatch batch;
    FusedMoeOptions options;
    options.activations = settings.activations;
    options.isas = settings.isas;
    options.avx512_dot = settings.avx512_dot;
    options.exchange = settings.exchange;
    options.no_reduce = settings.no_reduce;
    options.batch_invariant = settings.batch_invariant;
    options.threads = settings.load.threads;
    if (reference != nullptr) {
      const auto found = reference->blocks.find(spec.layer);
      if (found == reference->blocks.end()) {
        model.report().note(fmt::format("the reference has no block of layer {}", spec.layer));
      } else {
        block = &found->second;
        batch = {block->input, reference->token_ids, block->router_input};
        options.skip_shared_experts = !block->has_shared;
      }
    }
    const LayerBatch* input = block == nullptr ? nullptr : &batch;
    const std::vector<RankResult> results =
        run_layer_on_ranks(model, spec.layer, settings.parallel, settings.placement, settings.load,
                           options, input, 1, settings.ranks);
    for (const RankResult& result : results) {
      verified.load += result.load;
      verified.moved += result.moved;
    }
    if (settings.ranks.world != nullptr) {
      verified.own_load += results[static_cast<size_t>(settings.ranks.world->rank())].load;
    }
    if (block == nullptr) continue;
    const std::vector<float>& expected = expected_output(model, spec, *block, settings.activations);
    std::vector<float> y = gather_outputs(results, settings.parallel, settings.no_reduce);
    if (y.empty() && !expected.empty()) continue;  // the load itself had findings
    const double error = relative_error(y, expected);
    BlockResult result{spec.layer, block->name, error, limit_of(model, spec, *block, settings),
                       std::move(y)};
    if (!result.ok()) {
      model.report().add({FindingKind::kReference,
                          fmt::format("layer {} ({}): relative error {:.3e} above {:.1e}",
                                      spec.layer, block->name, result.error, result.limit),
                          "", "", spec.layer, -1, ""});
    }
    if (on_block) on_block(result);
    verified.blocks.push_back(std::move(result));
  }
  return verified;
}

}  // namespace gantry
