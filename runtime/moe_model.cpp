#include "runtime/moe_model.h"

#include <algorithm>
#include <functional>
#include <string>

#include "kernels/base/check.h"
#include "runtime/device_model.h"
#include "runtime/rank_results.h"

namespace gantry {
namespace {

constexpr int64_t kMaxChunkTokens = 4096;  // bounds the workspace: longer batches run in chunks

// The part of a batch that a rank is given.
Slice tokens_of(const ParallelConfig& config, int64_t num_tokens) {
  const Slice group = split_evenly(num_tokens, config.dp_size, config.dp_rank());
  if (!config.sequence_parallel) return group;
  const Slice part = split_evenly(group.size(), config.token_group_size(),
                                  config.rank - config.first_of_token_group());
  return {group.begin + part.begin, group.begin + part.end};
}

// Whether a rank's output is a part of the whole: else another rank of its token group has the
// same.
bool speaks_for_tokens(const ParallelConfig& rank, bool no_reduce) {
  return no_reduce || rank.sequence_parallel || rank.rank == rank.first_of_token_group();
}

}  // namespace

MoeModel::MoeModel(const std::filesystem::path& directory, bool names_only)
    : checkpoint_(std::make_unique<Checkpoint>(names_only ? Checkpoint::open_names_only(directory)
                                                          : Checkpoint::open(directory))),
      config_(std::make_unique<MoeModelConfig>(read_moe_config(checkpoint_->config_text(),
                                                               checkpoint_->config_source(),
                                                               checkpoint_->quant_sidecars()))),
      report_(std::make_unique<LoadReport>()) {
  tensors_ = std::make_unique<TensorMap>(TensorMap::build(*checkpoint_, *config_, *report_));
}

std::vector<RankResult> run_layer_on_ranks(MoeModel& model, int layer,
                                           const ParallelConfig& parallel,
                                           const ExpertPlacement& placement,
                                           const LoadOptions& load_options,
                                           const FusedMoeOptions& options, const LayerBatch* batch,
                                           int repeat, const RankSetup& ranks) {
  const MoeLayerSpec& spec = *model.config().find_layer(layer);
  const ExpertMap experts = placement.map_of(layer, spec.num_experts, parallel.ep_size);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  std::vector<RankResult> results(static_cast<size_t>(parallel.world_size()));
  const std::vector<Finding> findings_before = model.report().findings();
  const auto begin_phase = [&](const char* phase) {
    if (ranks.on_phase) ranks.on_phase(phase, layer);
  };

  const auto body = [&](Communicator& world) {
    ParallelConfig own = parallel;
    own.rank = world.rank();
    RankResult& result = results[static_cast<size_t>(own.rank)];
    // Simulated ranks share the CPUs.
    const auto share = [&](const Threads& threads) {
      if (ranks.world != nullptr) return threads;
      return Threads{.count = std::max(1, threads.resolved_count() / parallel.world_size()),
                     .executor = threads.executor};
    };
    LoadOptions own_load = load_options;
    own_load.threads = share(load_options.threads);
    own_load.gpu = ranks.device != nullptr;
    begin_phase("load");
    MoeLayerWeights weights =
        loader.load_layer(layer, own, experts, own_load, model.report(), result.load);
    if (ranks.world != nullptr) {
      share_findings(world, findings_before, model.report());
    } else {
      world.barrier();  // every rank's findings are in
    }
    if (batch == nullptr || model.report().findings().size() > findings_before.size()) return;

    begin_phase("forward");
    FusedMoeOptions own_options = options;
    own_options.threads = share(options.threads);
    const auto h = spec.hidden_size;
    const auto num_tokens = static_cast<int64_t>(batch->hidden_states.size()) / h;
    const Slice tokens = tokens_of(own, num_tokens);
    MoeInput input;
    const auto own_rows = [&](std::span<const float> all) {
      return all.empty() ? all
                         : all.subspan(static_cast<size_t>(tokens.begin * h),
                                       static_cast<size_t>(tokens.size() * h));
    };
    input.hidden_states = own_rows(batch->hidden_states);
    input.router_hidden_states = own_rows(batch->router_hidden_states);
    if (!batch->token_ids.empty()) {
      input.token_ids = batch->token_ids.subspan(static_cast<size_t>(tokens.begin),
                                                 static_cast<size_t>(tokens.size()));
    }
    result.out.resize(static_cast<size_t>(tokens.size() * h));
    ParallelConfig first = own;  // which has the most tokens
    first.rank = 0;
    const auto max_tokens =
        std::clamp<int64_t>(tokens_of(first, num_tokens).size(), 1, kMaxChunkTokens);
    if (ranks.device != nullptr) {
      return run_layer_on_device(weights, experts, own_options, input, max_tokens, repeat, ranks,
                                 world, result);
    }
    FusedMoeLayer moe(std::move(weights), experts, own_options, &world);
    Workspace workspace = moe.make_workspace(max_tokens);
    std::vector<ForwardTimes> times;
    for (int i = 0; i < repeat; ++i) {
      moe.forward(input, workspace, result.out);
      times.push_back(workspace.last_times());
      if (i == 0) {
        result.moved = moe.bytes_moved();
        result.tokens_per_expert.assign(workspace.tokens_per_expert().begin(),
                                        workspace.tokens_per_expert().end());
      }
    }
    std::sort(times.begin(), times.end(), [](const ForwardTimes& a, const ForwardTimes& b) {
      return a.total_us() < b.total_us();
    });
    result.times = times[times.size() / 2];
  };
  if (ranks.world == nullptr) {
    run_local_ranks(parallel.world_size(), body);
    return results;
  }
  GANTRY_CHECK(ranks.world->size() == parallel.world_size(), ErrorCode::kInvalidArgument,
               "tp {} x ep {} are {} ranks, the communicator has {}", parallel.tp_size,
               parallel.ep_size, parallel.world_size(), ranks.world->size());
  body(*ranks.world);
  ParallelConfig own = parallel;
  own.rank = ranks.world->rank();
  share_results(*ranks.world, speaks_for_tokens(own, options.no_reduce), results);
  return results;
}

std::vector<float> gather_outputs(const std::vector<RankResult>& results,
                                  const ParallelConfig& parallel, bool no_reduce) {
  std::vector<float> all;
  for (size_t rank = 0; rank < results.size(); ++rank) {
    const std::vector<float>& out = results[rank].out;
    if (no_reduce && rank > 0) {
      std::transform(all.begin(), all.end(), out.begin(), all.begin(), std::plus<>());
      continue;
    }
    ParallelConfig own = parallel;
    own.rank = static_cast<int>(rank);
    if (!speaks_for_tokens(own, no_reduce)) continue;
    all.insert(all.end(), out.begin(), out.end());
  }
  return all;
}

}  // namespace gantry
