// Layers of a model on a GPU, as `gantry run` and `gantry verify` use them.

#include <algorithm>
#include <chrono>

#include "runtime/moe_model.h"

namespace gantry {
namespace {

constexpr int64_t kMaxChunkTokens = 4096;  // bounds the workspace: longer batches run in chunks

}  // namespace

RankResult run_layer_on_device(MoeModel& model, int layer, const std::shared_ptr<Device>& device,
                               const LoadOptions& load_options, const DeviceMoeOptions& options,
                               const LayerBatch* batch, int repeat) {
  const MoeLayerSpec& spec = *model.config().find_layer(layer);
  const ExpertMap experts = ExpertMap::create(spec.num_experts, 1, Placement::kLinear);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  const size_t findings_before = model.report().findings().size();
  RankResult result;
  LoadOptions load = load_options;
  load.gpu = true;
  const MoeLayerWeights weights =
      loader.load_layer(layer, {}, experts, load, model.report(), result.load);
  if (batch == nullptr || model.report().findings().size() > findings_before) return result;

  const DeviceMoeLayer moe(device, weights, experts, options);
  const auto num_tokens = static_cast<int64_t>(batch->hidden_states.size()) / spec.hidden_size;
  DeviceWorkspace workspace =
      moe.make_workspace(std::clamp<int64_t>(num_tokens, 1, kMaxChunkTokens));
  result.out.resize(batch->hidden_states.size());
  const MoeInput input{.hidden_states = batch->hidden_states,
                       .router_hidden_states = batch->router_hidden_states,
                       .token_ids = batch->token_ids};
  std::vector<double> times_us;
  for (int i = 0; i < repeat; ++i) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    moe.forward_host(input, workspace, result.out);
    times_us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::sort(times_us.begin(), times_us.end());
  result.times.experts_us = times_us[times_us.size() / 2];
  result.tokens_per_expert = moe.last_tokens_per_expert(workspace);
  return result;
}

}  // namespace gantry
