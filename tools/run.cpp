#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/input_scale_job.h"
#include "loader/plain_read.h"
#include "loader/safetensors_writer.h"
#include "parallel/digest.h"
#include "runtime/moe_model.h"
#include "tools/activation_option.h"
#include "tools/commands.h"
#include "tools/device_option.h"
#include "tools/exchange_option.h"
#include "tools/rank_session.h"

namespace gantry::cli {
namespace {

constexpr int64_t kPlainReadBytes = int64_t{4} << 30;  // enough to tell the rate

struct RunOptions {
  CommonOptions common;
  ParallelOptions parallel;
  ExchangeOption exchange;
  std::string directory;
  std::string layers;
  int64_t tokens = 64;
  std::string input;
  std::string output;
  std::string activations;  // empty: as the checkpoint declares
  DeviceOption device;
  bool batch_invariant = false;
  int repeat = 3;
  uint64_t seed = 0;
  std::vector<std::string> allow;
};

// The tensor "hidden_states", or the only tensor of the file.
std::vector<float> read_hidden_states(const std::string& path, int64_t hidden_size) {
  const SafetensorsFile file(path);
  const TensorInfo* info = file.find("hidden_states");
  if (info == nullptr && file.header().tensors.size() == 1) info = &file.header().tensors[0];
  GANTRY_CHECK(info != nullptr, ErrorCode::kInvalidArgument,
               "{}: expected a tensor 'hidden_states' or a single tensor, found {} tensors", path,
               file.header().tensors.size());
  GANTRY_CHECK(
      is_plain_float(info->dtype) && info->shape.size() == 2 && info->shape[1] == hidden_size,
      ErrorCode::kInvalidArgument, "{}: expected floats [T, {}], found {} {}", path, hidden_size,
      info->name, describe(*info));
  std::vector<std::byte> raw(static_cast<size_t>(info->num_bytes()));
  file.read(info->begin, raw.data(), info->num_bytes());
  std::vector<float> values(static_cast<size_t>(info->num_elements()));
  convert_to_f32(raw.data(), info->dtype, info->num_elements(), values.data());
  return values;
}

std::vector<float> random_hidden_states(int64_t num_tokens, int64_t hidden_size, uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(num_tokens * hidden_size));
  for (float& value : values)
    value = normal(engine);
  return values;
}

// Layers that route by token id need some: the ids of the vocabulary in turn.
std::vector<int32_t> made_up_token_ids(const MoeLayerSpec& spec, int64_t num_tokens) {
  std::vector<int32_t> ids;
  for (int64_t t = 0; spec.hash_table && t < num_tokens; ++t) {
    ids.push_back(static_cast<int32_t>(t % spec.vocab_size));
  }
  return ids;
}

// Tokens of each expert as a bar chart of at most 32 columns, lightest to heaviest.
std::string histogram(const std::vector<int64_t>& tokens) {
  constexpr std::array<std::string_view, 9> kBars = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::vector<int64_t> sorted = tokens;
  std::sort(sorted.begin(), sorted.end());
  const size_t columns = std::min<size_t>(32, sorted.size());
  const int64_t top = std::max<int64_t>(1, sorted.back());
  std::string text;
  for (size_t c = 0; c < columns; ++c) {
    const int64_t value = sorted[(c * sorted.size() + sorted.size() / 2) / columns];
    text += kBars[static_cast<size_t>((value * 8 + top - 1) / top)];
  }
  return text;
}

struct LayerSummary {
  int layer = 0;
  LoadStats load;
  ForwardTimes times;   // median of the repeats, of the slowest rank
  ExchangeBytes moved;  // by one call, all ranks
  std::vector<int64_t> tokens_per_expert;
  std::vector<int64_t> tokens_per_rank;  // EP ranks; (token, expert) pairs
};

ForwardTimes slowest(const std::vector<RankResult>& results) {
  const auto found = std::max_element(
      results.begin(), results.end(),
      [](const auto& a, const auto& b) { return a.times.total_us() < b.times.total_us(); });
  return found->times;
}

void print_layer(const LayerSummary& summary, int64_t num_tokens, const Output& output) {
  const ForwardTimes& t = summary.times;
  const auto& loads = summary.tokens_per_expert;
  const auto [low, high] = std::minmax_element(loads.begin(), loads.end());
  int64_t total = 0;
  for (const int64_t n : loads)
    total += n;
  const double mean = static_cast<double>(total) / static_cast<double>(loads.size());
  output.text(fmt::format(
      "  layer {:<3} load {:>8} {:>6.2f} GB/s | forward {:>9.3f} ms = route {:.3f} + dispatch "
      "{:.3f} + "
      "experts {:.3f} + combine {:.3f} | {:>8.0f} tokens/s",
      summary.layer, human_bytes(summary.load.bytes_owned),
      static_cast<double>(summary.load.bytes_read) / 1e9 / std::max(1e-9, summary.load.seconds),
      t.total_us() / 1e3, t.route_us / 1e3, t.dispatch_us / 1e3, t.experts_us / 1e3,
      t.combine_us / 1e3, static_cast<double>(num_tokens) * 1e6 / std::max(1e-9, t.total_us())));
  output.text(fmt::format("            tokens per expert [{}] min {} mean {:.1f} max {}",
                          histogram(loads), *low, mean, *high));
  if (summary.moved.collectives > 0) {
    output.text(fmt::format("            moved {} between ranks: dispatch {}, combine {}",
                            human_bytes(summary.moved.received()),
                            human_bytes(summary.moved.dispatch_received),
                            human_bytes(summary.moved.combine_received)));
  }
  nlohmann::ordered_json fields = {{"layer", summary.layer},
                                   {"bytes_read", summary.load.bytes_read},
                                   {"bytes_owned", summary.load.bytes_owned},
                                   {"load_seconds", summary.load.seconds},
                                   {"forward_ms", t.total_us() / 1e3},
                                   {"route_ms", t.route_us / 1e3},
                                   {"dispatch_ms", t.dispatch_us / 1e3},
                                   {"experts_ms", t.experts_us / 1e3},
                                   {"combine_ms", t.combine_us / 1e3},
                                   {"moved_bytes", summary.moved.received()},
                                   {"tokens_per_expert", loads}};
  if (summary.tokens_per_rank.size() > 1) fields["tokens_per_rank"] = summary.tokens_per_rank;
  output.event("layer", fields);
}

void write_outputs(const std::string& path, const std::map<int, std::vector<float>>& outputs,
                   int64_t num_tokens) {
  std::vector<TensorInfo> tensors;
  for (const auto& [layer, values] : outputs) {
    TensorInfo info;
    info.name = fmt::format("layers.{}.output", layer);
    info.dtype = DType::kF32;
    info.shape = {num_tokens,
                  num_tokens > 0 ? static_cast<int64_t>(values.size()) / num_tokens : 0};
    tensors.push_back(std::move(info));
  }
  SafetensorsWriter writer(path, std::move(tensors), {{"format", "pt"}});
  for (const auto& [layer, values] : outputs) {
    writer.write(fmt::format("layers.{}.output", layer), 0, std::as_bytes(std::span(values)));
  }
  writer.finish();
}

int run_run(const RunOptions& options, RankSession& ranks) {
  const Output output(options.common);
  const ParallelConfig parallel = options.exchange.config(options.parallel.config());
  const LayerRange range = parse_layer_range(options.layers);
  GANTRY_CHECK(options.tokens >= 0, ErrorCode::kInvalidArgument, "--tokens: expected at least 0");
  const auto device = open_chosen_device(options.device, options.activations, ranks, output);
  MoeModel model(options.directory, /*names_only=*/false);
  for (const FindingKind kind : parse_allowed(options.allow))
    model.report().allow(kind);
  const MoeModelConfig& config = model.config();
  output.text(fmt::format("{}: family {}, {}; {}", options.directory, config.family->name,
                          describe(parallel), cpu_model_name()));
  if (!model.report().ok()) {
    output.report(model.report(), 50);
    return kExitFinding;
  }
  const ExpertPlacement placement = options.parallel.placement_of(config);
  std::vector<MoeLayerSpec> layers;
  for (const MoeLayerSpec& spec : config.layers) {
    if (range.contains(spec.layer)) layers.push_back(spec);
  }
  GANTRY_CHECK(!layers.empty(), ErrorCode::kInvalidArgument, "--layers {}: no MoE layer in it",
               options.layers);
  const std::vector<float> hidden =
      options.input.empty()
          ? random_hidden_states(options.tokens, layers[0].hidden_size, options.seed)
          : read_hidden_states(options.input, layers[0].hidden_size);
  const auto num_tokens = static_cast<int64_t>(hidden.size()) / layers[0].hidden_size;

  LoadOptions load;
  load.threads = options.common.make_threads();
  load.slot_pool = std::make_shared<SlotPool>();  // one layer's memory after the other's
  FusedMoeOptions run;
  run.threads = load.threads;
  const ActivationChoice activations = choose_activations(
      device == nullptr || options.activations == "scheme" ? options.activations : "bf16",
      model_activations(config, model.tensors()));
  run.activations = activations.dtype;
  run.avx512_dot = ranks.agreed_avx512_dot();
  run.batch_invariant = options.batch_invariant;
  options.exchange.apply(parallel, ranks.world(), device != nullptr, run);
  ranks.check_agreement(
      options.parallel, &model.checkpoint(),
      {{"command", "run"},
       {"layers", options.layers},
       {"input", fmt::format("{} tokens, {}", num_tokens,
                             to_string(digest_of(std::as_bytes(std::span(hidden)))))},
       {"repeat", std::to_string(options.repeat)},
       {"placement", placement.fingerprint()},
       {"exchange", options.exchange.text()},
       {"device", options.device.text()},
       {"batch invariant", options.batch_invariant ? "yes" : "no"},
       {"activations", activations.text},
       {"AVX-512 flavour", flavour_name(run.avx512_dot)}});
  output.text(fmt::format("{} tokens, activations {}, {} thread(s)", num_tokens, activations.text,
                          load.threads.resolved_count()));
  if (parallel.world_size() > 1) {
    output.text(describe_exchange(options.exchange, parallel, device != nullptr,
                                  layers[0].routing.num_slots()));
  }
  if (parallel.ep_size > 1) {
    output.text(fmt::format(
        "experts ({}): {}", placement.describe(),
        placement.map_of(layers[0].layer, layers[0].num_experts, parallel.ep_size).describe()));
  }
  LoadStats total;
  LoadStats own_load;
  std::map<int, std::vector<float>> outputs;
  int64_t plan_bytes = 0;
  const WeightLoader loader(model.checkpoint(), config, model.tensors());
  for (const MoeLayerSpec& spec : layers) {
    for (int rank = 0; rank < parallel.world_size(); ++rank) {
      if (ranks.world() != nullptr && rank != ranks.rank()) continue;  // that process' work
      ParallelConfig own = parallel;
      own.rank = rank;
      plan_bytes += loader
                        .plan(spec.layer, own,
                              placement.map_of(spec.layer, spec.num_experts, parallel.ep_size))
                        .bytes_read;
    }
  }
  ProgressMeter progress("load", plan_bytes, options.common);
  load.progress = [&](int64_t bytes) { progress.add(bytes); };
  RankSetup setup =
      setup_of(ranks, options.device, options.exchange, options.parallel.launch, device);
  setup.device_options.quantize_rows = options.activations == "scheme";
  for (const MoeLayerSpec& spec : layers) {
    const std::vector<int32_t> token_ids = made_up_token_ids(spec, num_tokens);
    const LayerBatch batch{hidden, token_ids, {}};
    const std::vector<RankResult> results = run_layer_on_ranks(
        model, spec.layer, parallel, placement, load, run, &batch, options.repeat, setup);
    if (!model.report().ok()) {
      output.report(model.report(), 50);
      return kExitFinding;
    }
    LayerSummary summary{.layer = spec.layer,
                         .load = {},
                         .times = slowest(results),
                         .moved = {},
                         .tokens_per_expert = {},
                         .tokens_per_rank = {}};
    summary.tokens_per_expert.assign(static_cast<size_t>(spec.num_experts), 0);
    for (const RankResult& result : results) {
      summary.moved += result.moved;
      summary.load.bytes_read += result.load.bytes_read;
      summary.load.bytes_owned += result.load.bytes_owned;
      summary.load.seconds = std::max(summary.load.seconds, result.load.seconds);
      for (size_t e = 0; e < result.tokens_per_expert.size(); ++e) {
        summary.tokens_per_expert[e] += result.tokens_per_expert[e];
      }
      if ((&result - results.data()) % parallel.tp_size == 0) {  // TP ranks count nothing
        summary.tokens_per_rank.push_back(std::accumulate(
            result.tokens_per_expert.begin(), result.tokens_per_expert.end(), int64_t{0}));
      }
    }
    total += summary.load;
    own_load += results[static_cast<size_t>(ranks.rank())].load;
    print_layer(summary, num_tokens, output);
    if (!options.output.empty())
      outputs[spec.layer] = gather_outputs(results, parallel, run.no_reduce);
  }
  if (!options.output.empty() && ranks.rank() == 0) {
    write_outputs(options.output, outputs, num_tokens);
  }
  ranks.print_figures(output, own_load);
  if (ranks.rank() != 0) return kExitOk;  // the rest is rank 0's to measure and to print
  const double plain = plain_read_gb_s(model.checkpoint(), load.threads, kPlainReadBytes);
  const int64_t peak = peak_rss_bytes();
  output.result(
      fmt::format("{} layer(s), {} loaded and packed at {:.2f} GB/s (plain read of the same files: "
                  "{:.2f} GB/s), peak memory {}",
                  layers.size(), human_bytes(total.bytes_owned),
                  static_cast<double>(total.bytes_read) / 1e9 / std::max(1e-9, total.seconds),
                  plain, human_bytes(peak)));
  output.event("result", {{"layers", layers.size()},
                          {"tokens", num_tokens},
                          {"bytes_owned", total.bytes_owned},
                          {"bytes_read", total.bytes_read},
                          {"load_seconds", total.seconds},
                          {"plain_read_gb_s", plain},
                          {"peak_rss_bytes", peak}});
  return kExitOk;
}

}  // namespace

void add_run_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "Loads MoE layers and runs them, with times");
  command->add_option("DIR", options->directory, "checkpoint directory or .gguf file")->required();
  command->add_option("--layers", options->layers, "N or A-B (default: all MoE layers)");
  command->add_option("--tokens", options->tokens, "random tokens")->capture_default_str();
  command->add_option("--input", options->input, "safetensors file with hidden_states [T, H]");
  command->add_option("--output", options->output, "safetensors file to write layers.N.output to");
  add_activation_option(*command, options->activations);
  add_device_option(*command, options->device);
  command->add_option("--repeat", options->repeat, "forward calls a layer; the median is shown")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "seed of the random tokens")->capture_default_str();
  add_allow_option(*command, options->allow);
  command->add_flag("--batch-invariant", options->batch_invariant,
                    "only kernels whose rows do not depend on their batch");
  add_parallel_options(*command, options->parallel);
  add_launch_options(*command, options->parallel.launch);
  add_exchange_options(*command, options->exchange);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_on_ranks(options->parallel, options->common,
                          [&](RankSession& ranks) { return run_run(*options, ranks); });
    };
  });
}

}  // namespace gantry::cli
