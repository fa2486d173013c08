// `gantry stats`: the load of experts and ranks, from the lines of a run or from running layers.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <random>

#include "kernels/base/check.h"
#include "parallel/eplb.h"
#include "runtime/layer_balancer.h"
#include "runtime/moe_model.h"
#include "tools/balance_options.h"
#include "tools/commands.h"
#include "tools/layer_stats.h"

namespace gantry::cli {
namespace {

struct StatsOptions {
  CommonOptions common;
  ParallelOptions parallel;
  EplbOptions eplb;
  std::string source;
  std::string layers;
  int64_t tokens = 64;
  int steps = 8;
  int interval = 0;
  uint64_t seed = 0;
  std::string svg;
  std::string prometheus;
};

// ---- from a file -----------------------------------------------------------------------------

std::vector<LayerStats> read_stats(const StatsOptions& options) {
  const ExpertCounts counts = read_expert_counts(options.source);
  const LayerRange range = parse_layer_range(options.layers);
  const PlacedModel model = model_of_counts(counts, 0);
  const ExpertPlacement placement = placement_of(options.parallel.placement, model);
  std::vector<LayerStats> layers;
  for (const auto& [layer, load] : counts) {
    if (!range.contains(layer)) continue;
    LayerStats stats{.layer = layer, .load = load, .rank_tokens = {}};
    // Another --ep than that of the run asks what would be.
    const auto ep = static_cast<size_t>(options.parallel.ep);
    stats.measured =
        !load.tokens_per_rank.empty() && (ep == 1 || ep == load.tokens_per_rank.size());
    if (stats.measured) {
      stats.rank_tokens.assign(load.tokens_per_rank.begin(), load.tokens_per_rank.end());
    } else {
      const auto num_experts = static_cast<int>(load.tokens_per_expert.size());
      stats.rank_tokens = expected_rank_loads(
          placement.map_of(layer, num_experts, options.parallel.config().ep_size),
          load.tokens_per_expert);
    }
    layers.push_back(std::move(stats));
  }
  return layers;
}

// ---- from running ----------------------------------------------------------------------------

// What one rank saw of a layer.
struct RankLoad {
  std::vector<int64_t> tokens_per_expert;
  int64_t tokens = 0;
  BalanceTotals totals;
};

// Runs `steps` batches on this rank, balancing in between if asked to.
RankLoad run_rank(FusedMoeLayer& layer, Communicator& world, const StatsOptions& options,
                  std::span<const float> batches) {
  const auto weights = layer.weights();
  const MoeLayerSpec& spec = weights->spec;
  const ParallelConfig& parallel = weights->parallel;
  LayerBalancer balancer(
      layer, world,
      {.num_redundant = options.eplb.redundant,
       .num_groups = options.eplb.groups,
       .num_nodes = options.eplb.nodes,
       .window_steps = options.interval > 0 ? options.interval : 1,
       .interval_steps = options.interval > 0 ? options.interval : options.steps + 1});
  const Slice tokens = split_evenly(options.tokens, parallel.dp_size, parallel.dp_rank());
  Workspace workspace = layer.make_workspace(std::max<int64_t>(1, options.tokens),
                                             std::max(weights->num_slots, balancer.max_slots()));
  std::vector<int32_t> token_ids;
  for (long t = tokens.begin; spec.hash_table && t < tokens.end; ++t)
    token_ids.push_back(static_cast<int32_t>(t % spec.vocab_size));
  const auto h = static_cast<size_t>(spec.hidden_size);
  std::vector<float> out(static_cast<size_t>(tokens.size()) * h);
  RankLoad load;
  for (int step = 0; step < options.steps; ++step) {
    const size_t first = static_cast<size_t>(step) * static_cast<size_t>(options.tokens) +
                         static_cast<size_t>(tokens.begin);
    layer.forward({.hidden_states = batches.subspan(first * h, out.size()), .token_ids = token_ids},
                  workspace, out);
    for (const int64_t n : workspace.tokens_per_slot())
      load.tokens += n;
    balancer.step(workspace);
  }
  const auto total = balancer.counters().total();
  load.tokens_per_expert.assign(total.begin(), total.end());
  load.totals = balancer.totals();
  return load;
}

LayerStats run_layer(MoeModel& model, const MoeLayerSpec& spec, const StatsOptions& options,
                     const ExpertPlacement& placement, std::span<const float> batches) {
  const ParallelConfig parallel = options.parallel.config();
  const ExpertMap map = placement.map_of(spec.layer, spec.num_experts, parallel.ep_size);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  std::vector<RankLoad> ranks(static_cast<size_t>(parallel.world_size()));
  Threads threads = options.common.make_threads();
  threads.count = std::max(1, threads.resolved_count() / parallel.world_size());
  run_local_ranks(parallel.world_size(), [&](Communicator& world) {
    ParallelConfig own = parallel;
    own.rank = world.rank();
    LoadOptions load;
    load.threads = threads;
    LoadStats loaded;
    MoeLayerWeights weights = loader.load_layer(spec.layer, own, map, load, model.report(), loaded);
    world.barrier();  // every rank's findings are in
    if (!model.report().ok()) return;
    FusedMoeOptions run;
    run.threads = threads;
    FusedMoeLayer layer(std::move(weights), map, run, &world);
    ranks[static_cast<size_t>(own.rank)] = run_rank(layer, world, options, batches);
  });
  LayerStats stats{.layer = spec.layer, .load = {}, .rank_tokens = {}, .measured = true};
  stats.load.tokens_per_expert.assign(static_cast<size_t>(spec.num_experts), 0);
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const RankLoad& load = ranks[rank];
    stats.load.bytes_moved += load.totals.bytes_sent;
    if (rank % static_cast<size_t>(parallel.tp_size) != 0) continue;
    stats.load.tokens_per_rank.push_back(load.tokens);
    for (size_t e = 0; e < load.tokens_per_expert.size(); ++e)
      stats.load.tokens_per_expert[e] += load.tokens_per_expert[e];
  }
  stats.load.rebalances = ranks[0].totals.rebalances;
  stats.rank_tokens.assign(stats.load.tokens_per_rank.begin(), stats.load.tokens_per_rank.end());
  return stats;
}

std::vector<LayerStats> run_stats(MoeModel& model, const StatsOptions& options) {
  const LayerRange range = parse_layer_range(options.layers);
  const ExpertPlacement placement = options.parallel.placement_of(model.config());
  std::vector<LayerStats> layers;
  std::vector<float> batches;
  for (const MoeLayerSpec& spec : model.config().layers) {
    if (!range.contains(spec.layer)) continue;
    const auto values = static_cast<size_t>(options.steps * options.tokens * spec.hidden_size);
    if (batches.size() != values) {
      std::mt19937_64 engine(options.seed);
      std::normal_distribution<float> normal;
      batches.resize(values);
      std::generate(batches.begin(), batches.end(), [&] { return normal(engine); });
    }
    layers.push_back(run_layer(model, spec, options, placement, batches));
    if (!model.report().ok()) break;
  }
  return layers;
}

bool is_checkpoint(const std::filesystem::path& path) {
  return std::filesystem::is_directory(path) || path.extension() == ".gguf";
}

int run_stats_command(const StatsOptions& options) {
  const Output output(options.common);
  std::vector<LayerStats> layers;
  if (is_checkpoint(options.source)) {
    MoeModel model(options.source, /*names_only=*/false);
    if (model.report().ok()) layers = run_stats(model, options);
    if (!model.report().ok()) {
      output.report(model.report(), 50);
      return kExitFinding;
    }
    output.text(fmt::format("{}: {} step(s) of {} random tokens, {}, placement {}", options.source,
                            options.steps, options.tokens, describe(options.parallel.config()),
                            options.parallel.placement));
  } else {
    layers = read_stats(options);
  }
  GANTRY_CHECK(!layers.empty(), ErrorCode::kInvalidArgument, "--layers {}: no MoE layer in it",
               options.layers);
  print_stats(layers, output);
  if (!options.prometheus.empty()) write_text_file(options.prometheus, prometheus_text(layers));
  if (!options.svg.empty()) {
    write_text_file(options.svg, stats_svg(layers, "Tokens per expert: " + options.source));
  }
  return kExitOk;
}

}  // namespace

void add_stats_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<StatsOptions>();
  CLI::App* command = app.add_subcommand(
      "stats", "Shows the load of experts and ranks: table, JSON, Prometheus text, heat map");
  command
      ->add_option("SOURCE", options->source,
                   "lines of `run --json` or `stats --json`, SGLang's logical_count, or a "
                   "checkpoint whose layers are run with random tokens")
      ->required();
  command->add_option("--layers", options->layers, "N or A-B (default: all MoE layers)");
  command->add_option("--tokens", options->tokens, "random tokens a step")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--steps", options->steps, "forward calls a layer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--eplb-interval", options->interval,
                   "balance the experts after every so many steps (0: never)")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  add_eplb_options(*command, options->eplb);
  command->add_option("--seed", options->seed, "seed of the random tokens")->capture_default_str();
  command->add_option("--svg", options->svg, "file for a heat map, layers by experts");
  command->add_option("--prometheus", options->prometheus, "file for Prometheus' text format");
  add_parallel_options(*command, options->parallel);
  add_common_options(*command, options->common);
  command->callback(
      [options, &chosen] { chosen = [options] { return run_stats_command(*options); }; });
}

}  // namespace gantry::cli
