// `gantry stats`: the load of experts and ranks, from the lines of a run or from running layers.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <random>

#include "kernels/base/check.h"
#include "parallel/eplb.h"
#include "parallel/rank_vote.h"
#include "runtime/layer_balancer.h"
#include "runtime/moe_model.h"
#include "runtime/rank_results.h"
#include "tools/balance_options.h"
#include "tools/commands.h"
#include "tools/current_work.h"
#include "tools/layer_stats.h"
#include "tools/rank_session.h"

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

// Collective: everyone's, on every rank.
std::vector<RankLoad> gather_loads(Communicator& world, const RankLoad& own) {
  const std::vector<int64_t> tokens = gather_values(world, own.tokens);
  const std::vector<BalanceTotals> totals = gather_values(world, own.totals);
  const size_t num_experts = own.tokens_per_expert.size();
  const auto bytes = std::as_bytes(std::span(own.tokens_per_expert));
  std::vector<int64_t> experts(num_experts * tokens.size());
  world.all_gather(bytes, std::as_writable_bytes(std::span(experts)),
                   std::vector<int64_t>(tokens.size(), static_cast<int64_t>(bytes.size())));
  std::vector<RankLoad> all(tokens.size());
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const auto first = experts.begin() + static_cast<std::ptrdiff_t>(rank * num_experts);
    all[rank] = {.tokens_per_expert = {first, first + static_cast<std::ptrdiff_t>(num_experts)},
                 .tokens = tokens[rank],
                 .totals = totals[rank]};
  }
  return all;
}

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

// Loads a layer on this rank and runs it; empty if the checkpoint has a finding.
std::vector<RankLoad> run_layer_on_rank(MoeModel& model, const MoeLayerSpec& spec,
                                        const StatsOptions& options, const ExpertMap& map,
                                        std::span<const float> batches, const RankSession& ranks,
                                        Avx512Dot avx512_dot, Communicator& world) {
  const bool processes = ranks.world() != nullptr;
  ParallelConfig own = options.parallel.config();
  own.rank = world.rank();
  Threads threads = options.common.make_threads();
  if (!processes) threads.count = std::max(1, threads.resolved_count() / own.world_size());
  LoadOptions load;
  load.threads = threads;
  LoadStats loaded;
  note_work("load", spec.layer);
  const std::vector<Finding> before = model.report().findings();
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  MoeLayerWeights weights = loader.load_layer(spec.layer, own, map, load, model.report(), loaded);
  if (processes) {
    share_findings(world, before, model.report());
  } else {
    world.barrier();  // every rank's findings are in
  }
  if (!model.report().ok()) return {};
  note_work("forward", spec.layer);
  FusedMoeOptions run;
  run.threads = threads;
  run.avx512_dot = avx512_dot;
  FusedMoeLayer layer(std::move(weights), map, run, &world);
  return gather_loads(world, run_rank(layer, world, options, batches));
}

LayerStats run_layer(MoeModel& model, const MoeLayerSpec& spec, const StatsOptions& options,
                     const ExpertPlacement& placement, std::span<const float> batches,
                     const RankSession& session, Avx512Dot avx512_dot) {
  const ParallelConfig parallel = options.parallel.config();
  const ExpertMap map = placement.map_of(spec.layer, spec.num_experts, parallel.ep_size);
  std::vector<RankLoad> ranks;
  const auto body = [&](Communicator& world) {
    auto all = run_layer_on_rank(model, spec, options, map, batches, session, avx512_dot, world);
    if (session.world() != nullptr || world.rank() == 0) ranks = std::move(all);
  };
  if (session.world() != nullptr) {
    body(*session.world());
  } else {
    run_local_ranks(parallel.world_size(), body);
  }
  if (ranks.empty()) return {};
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

std::vector<LayerStats> run_stats(MoeModel& model, const StatsOptions& options,
                                  const RankSession& ranks) {
  const LayerRange range = parse_layer_range(options.layers);
  const ExpertPlacement placement = options.parallel.placement_of(model.config());
  const Avx512Dot avx512_dot = ranks.agreed_avx512_dot();
  ranks.check_agreement(options.parallel, &model.checkpoint(),
                        {{"command", "stats"},
                         {"placement", placement.fingerprint()},
                         {"layers", options.layers},
                         {"steps, tokens, seed",
                          fmt::format("{} {} {}", options.steps, options.tokens, options.seed)},
                         {"interval, copies, groups, nodes",
                          fmt::format("{} {} {} {}", options.interval, options.eplb.redundant,
                                      options.eplb.groups, options.eplb.nodes)},
                         {"AVX-512 flavour", flavour_name(avx512_dot)}});
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
    layers.push_back(run_layer(model, spec, options, placement, batches, ranks, avx512_dot));
    if (!model.report().ok()) break;
  }
  return layers;
}

bool is_checkpoint(const std::filesystem::path& path) {
  return std::filesystem::is_directory(path) || path.extension() == ".gguf";
}

int run_stats_command(const StatsOptions& options, const RankSession& ranks) {
  const Output output(options.common);
  std::vector<LayerStats> layers;
  if (is_checkpoint(options.source)) {
    MoeModel model(options.source, /*names_only=*/false);
    if (model.report().ok()) layers = run_stats(model, options, ranks);
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
  if (ranks.rank() != 0) return kExitOk;
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
  add_launch_options(*command, options->parallel.launch);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_on_ranks(options->parallel, options->common,
                          [&](RankSession& ranks) { return run_stats_command(*options, ranks); });
    };
  });
}

}  // namespace gantry::cli
