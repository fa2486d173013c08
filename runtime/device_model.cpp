// Layers of a model on GPUs, as `gantry run` and `gantry verify` use them.

#include "runtime/device_model.h"

#include <algorithm>
#include <chrono>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// Nothing is taken for something else: an exchange that a GPU does not do is refused.
void check_exchange(const MoeLayerWeights& weights, const FusedMoeOptions& options) {
  if (weights.parallel.world_size() == 1) return;
  const auto check = [&](bool possible, std::string_view what) {
    GANTRY_CHECK(possible, ErrorCode::kUnsupported, "layer {}: GPUs: {}", weights.spec.layer, what);
  };
  check(!options.no_reduce, "no-reduce is for engines, which call DeviceMoeLayer themselves");
}

}  // namespace

void run_layer_on_device(const MoeLayerWeights& weights, const ExpertMap& experts,
                         const FusedMoeOptions& options, const MoeInput& input, int64_t max_tokens,
                         int repeat, const RankSetup& ranks, Communicator& world,
                         RankResult& result) {
  check_exchange(weights, options);
  std::shared_ptr<DeviceCommunicator> device_world;
  if (weights.parallel.world_size() > 1) {
    device_world = ranks.make_device_world ? ranks.make_device_world(world)
                                           : make_host_staged_communicator(world, ranks.device, {});
  }
  DeviceMoeOptions own = ranks.device_options;
  own.threads = options.threads;
  own.exchange = options.exchange;
  own.skip_shared_experts = options.skip_shared_experts;
  own.batch_invariant = own.batch_invariant || options.batch_invariant;
  const DeviceMoeLayer moe(ranks.device, weights, experts, own, device_world.get());
  DeviceWorkspace workspace = moe.make_workspace(max_tokens);
  std::vector<double> times_us;
  for (int i = 0; i < repeat; ++i) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    moe.forward_host(input, workspace, result.out);
    times_us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    if (i == 0) result.moved = moe.bytes_moved();
  }
  std::sort(times_us.begin(), times_us.end());
  result.times.experts_us = times_us[times_us.size() / 2];
  result.tokens_per_expert = moe.last_tokens_per_expert(workspace);
}

}  // namespace gantry
