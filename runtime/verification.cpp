#include "runtime/verification.h"

#include "kernels/base/check.h"

namespace gantry {

double default_tolerance(ActivationDType activations) noexcept {
  return activations == ActivationDType::kF32 ? 1e-5 : 1e-2;
}

VerifyResult verify_model(MoeModel& model, const Reference* reference,
                          const VerifySettings& settings,
                          const std::function<void(const BlockResult&)>& on_block) {
  const double limit =
      settings.tolerance > 0.0 ? settings.tolerance : default_tolerance(settings.activations);
  VerifyResult verified;
  for (const MoeLayerSpec& spec : model.config().layers) {
    const ReferenceBlock* block = nullptr;
    LayerBatch batch;
    FusedMoeOptions options;
    options.activations = settings.activations;
    options.isas = settings.isas;
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
    const auto results =
        run_layer_on_ranks(model, spec.layer, settings.parallel, settings.placement, settings.load,
                           options, block == nullptr ? nullptr : &batch);
    for (const RankResult& result : results)
      verified.load += result.load;
    if (block == nullptr) continue;
    const std::vector<float> y = gather_outputs(results, settings.parallel);
    if (y.empty() && !block->output.empty()) continue;  // the load itself had findings
    const BlockResult result{spec.layer, block->name, relative_error(y, block->output), limit};
    if (!result.ok()) {
      model.report().add({FindingKind::kReference,
                          fmt::format("layer {} ({}): relative error {:.3e} above {:.0e}",
                                      spec.layer, block->name, result.error, limit),
                          "", "", spec.layer, -1, ""});
    }
    verified.blocks.push_back(result);
    if (on_block) on_block(result);
  }
  return verified;
}

}  // namespace gantry
