#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/ceilings/machine_ceilings.h"
#include "runtime/moe_model.h"
#include "tools/balance_options.h"
#include "tools/bench_case.h"
#include "tools/bench_device.h"
#include "tools/bench_ranks.h"
#include "tools/bench_report.h"
#include "tools/commands.h"
#include "tools/device_option.h"

// Times the experts of MoE layers with external routing, next to what the machine could do at most:
//   ceiling = max(bytes of the touched experts / read bandwidth, flops / peak)
// Peaks are measured in the same run. Bandwidth is measured between slices of every case, as shared
// machines change from second to second: a slice is compared with what was read right before and
// after it, and a case is the median of its slices.

namespace gantry::cli {
namespace {

constexpr int64_t kReadBytes = int64_t{2} << 30;
constexpr int kCeilingRepeats = 5;
constexpr int64_t kProbeBytes = int64_t{1} << 30;
constexpr int kSlices = 8;
/// A result above this share of the ceiling says that the ceiling is wrong.
constexpr double kImpossible = 1.03;

struct BenchOptions {
  CommonOptions common;
  ParallelOptions parallel;
  ExchangeOption exchange;
  std::string directory;
  std::string shape = "qwen3-30b-a3b";
  std::string format = "bf16";
  std::vector<int64_t> tokens = {1, 4, 16, 64, 256, 1024, 4096};
  std::vector<std::string> routing = {"uniform"};
  std::string activations;  // empty: as the checkpoint declares
  DeviceOption device;
  bool generic_kernels = false;
  double read_gb = 4.0;
  std::string cublas = "no";
  std::string output = "md";
  std::string svg;
  std::vector<std::string> peers;
  double seconds = 1.5;
  double rotate_gb = 1.5;
  bool batch_invariant = false;
  uint64_t seed = 1;
  std::vector<std::string> allow;
};

struct Times {
  std::vector<double> ms;

  Times& sorted() {
    std::sort(ms.begin(), ms.end());
    return *this;
  }
  /// Of sorted ones.
  [[nodiscard]] double at(double share) const {
    return ms[static_cast<size_t>(share * static_cast<double>(ms.size() - 1))];
  }
};

// Some forwards in a row, and the bandwidth beside them: the higher of before and after.
struct TimedSlice {
  double ms_median;
  double read_gb_s;
};

struct Timing {
  Times all;
  std::vector<TimedSlice> slices;
};

class Bench {
 public:
  Bench(const BenchOptions& options, BenchModel model, MachineCeilings ceilings)
      : options_(options),
        model_(std::move(model)),
        ceilings_(ceilings),
        probe_(host_isas(), options.common.make_threads(), kProbeBytes) {}

  [[nodiscard]] const BenchModel& model() const noexcept { return model_; }

  BenchRow run(int64_t num_tokens, BenchRouting routing) {
    const auto batches = make_batches(
        model_, num_tokens, routing, static_cast<int64_t>(options_.rotate_gb * 1e9), options_.seed);
    const auto weights = model_.layers[0]->weights();
    const MoeLayerSpec& spec = weights->spec;
    std::vector<Workspace> workspaces;
    for (const auto& layer : model_.layers)
      workspaces.push_back(layer->make_workspace(num_tokens));
    std::vector<float> out(batches[0].hidden_states.size());
    forward(batches[0], workspaces, out);
    BenchRow row{};
    row.rel_err = output_error(*model_.layers[batches[0].layer], batches[0], out, 4);
    for (size_t i = 0; i < std::min<size_t>(3, batches.size()); ++i)
      forward(batches[i], workspaces, out);
    const Timing timing = time(batches, workspaces, out);
    const Times& times = timing.all;

    double experts = 0.0;
    for (const BenchBatch& batch : batches)
      experts += static_cast<double>(batch.touched_experts);
    const double bytes =
        experts / static_cast<double>(batches.size()) * static_cast<double>(expert_bytes(*weights));
    const double matrices = spec.gated() ? 3.0 : 2.0;
    const double flops = static_cast<double>(num_tokens * spec.routing.num_slots()) * 2.0 *
                         matrices * static_cast<double>(spec.hidden_size) *
                         static_cast<double>(spec.intermediate_size);
    row.shape = model_.shape;
    row.impl = fmt::format("gantry {}", model_.layers[0]->kernel_name());
    row.routing = to_string(routing);
    row.tokens = num_tokens;
    row.ms_min = times.ms.front();
    row.ms_median = times.at(0.5);
    row.ms_p90 = times.at(0.9);
    row.weight_gb_s = bytes / row.ms_median / 1e6;
    row.tflops = flops / row.ms_median / 1e9;
    Times ceilings;
    Times shares;
    for (const TimedSlice& slice : timing.slices) {
      ceilings.ms.push_back(std::max(bytes / slice.read_gb_s / 1e6, flops / peak_tflops() / 1e9));
      shares.ms.push_back(ceilings.ms.back() / slice.ms_median);
    }
    row.ceiling_ms = ceilings.sorted().at(0.5);
    row.of_ceiling = shares.sorted().at(0.5);
    return row;
  }

 private:
  [[nodiscard]] double peak_tflops() const {
    if (model_.layers[0]->row_type() == ActivationDType::kInt8) return ceilings_.int8_tops();
    return model_.format != "f32" && model_.format != "f16" &&
                   model_.activations.dtype == ActivationDType::kBF16
               ? ceilings_.bf16_tflops()
               : ceilings_.fma_f32_tflops;
  }

  void forward(const BenchBatch& batch, std::vector<Workspace>& workspaces,
               std::vector<float>& out) {
    model_.layers[batch.layer]->forward({.hidden_states = batch.hidden_states,
                                         .topk_ids = batch.topk_ids,
                                         .topk_weights = batch.topk_weights},
                                        workspaces[batch.layer], out);
  }

  Timing time(const std::vector<BenchBatch>& batches, std::vector<Workspace>& workspaces,
              std::vector<float>& out) {
    using Milliseconds = std::chrono::duration<double, std::milli>;
    using Clock = std::chrono::steady_clock;
    Timing timing;
    const double slice_ms = 1000.0 * options_.seconds / kSlices;
    double spent_ms = 0.0;
    double before = probe_.gb_s(1);
    for (size_t i = 0; spent_ms < 1000.0 * options_.seconds || timing.slices.size() < 5;) {
      Times slice;
      for (double ms = 0.0; ms < slice_ms; ++i) {
        const auto start = Clock::now();
        forward(batches[i % batches.size()], workspaces, out);
        slice.ms.push_back(Milliseconds(Clock::now() - start).count());
        ms += slice.ms.back();
        spent_ms += slice.ms.back();
      }
      const double after = probe_.gb_s(1);
      timing.slices.push_back({slice.sorted().at(0.5), std::max(before, after)});
      timing.all.ms.insert(timing.all.ms.end(), slice.ms.begin(), slice.ms.end());
      before = after;
    }
    timing.all.sorted();
    return timing;
  }

  const BenchOptions& options_;
  BenchModel model_;
  MachineCeilings ceilings_;
  ReadProbe probe_;
};

BenchModel open_model(const BenchOptions& options, bool batch_invariant) {
  FusedMoeOptions run;
  run.threads = options.common.make_threads();
  run.batch_invariant = batch_invariant;
  const auto bytes = static_cast<int64_t>(options.rotate_gb * 1e9);
  return options.directory.empty()
             ? make_bench_model(options.shape, options.format, bytes, run, options.activations,
                                options.seed)
             : load_bench_model(options.directory, bytes, run, options.activations,
                                parse_allowed(options.allow));
}

// On a GPU: its own ceilings, the same rows.
int run_device_bench(const BenchOptions& options, const RankSession& ranks) {
  const ParallelConfig parallel = options.parallel.config();
  GANTRY_CHECK(parallel.world_size() == 1, ErrorCode::kUnsupported,
               "bench on a device runs one rank, found {}", describe(parallel));
  GANTRY_CHECK(options.svg.empty() && options.peers.empty(), ErrorCode::kUnsupported,
               "bench on a device prints rows: no --svg, --peers");
  const BenchFormat format =
      options.common.json ? BenchFormat::kJsonLines : parse_bench_format(options.output);
  CommonOptions common = options.common;
  common.quiet = common.quiet || format != BenchFormat::kMarkdown;
  const Output output(common);
  const auto device = open_chosen_device(options.device, options.activations, ranks, output);
  DeviceBenchOptions bench{.shape = options.shape,
                           .format = options.format,
                           .directory = options.directory,
                           .activations = options.activations,
                           .tokens = options.tokens,
                           .routing = {},
                           .rotate_gb = options.rotate_gb,
                           .seconds = options.seconds,
                           .batch_invariant = options.batch_invariant,
                           .generic_kernels = options.generic_kernels,
                           .seed = options.seed,
                           .cublas = options.cublas != "no",
                           .cublas_library = options.cublas == "yes" ? "" : options.cublas,
                           .allow = parse_allowed(options.allow),
                           .threads = options.common.make_threads(),
                           .ceilings = {}};
  for (const std::string& name : options.routing)
    bench.routing.push_back(name == "zipf" ? BenchRouting::kZipf : BenchRouting::kUniform);
  bench.ceilings.read_bytes = static_cast<int64_t>(options.read_gb * 1e9);
  if (options.device.device.starts_with("emulated")) {  // its times mean nothing
    bench.ceilings.rounds = 1;
    bench.ceilings.repeats = 1;
  }
  const auto print = [](const std::string& text) {
    std::fputs((text + "\n").c_str(), stdout);
    std::fflush(stdout);
  };
  const DeviceBenchResult result = bench_on_device(
      bench, device,
      [&](const DeviceBenchResult& start) {
        output.text(fmt::format("kernels: {}", start.kernels));
        output.text(
            fmt::format("ceilings: read {:.1f} GB/s, mma.sync bf16 {:.1f}, wgmma bf16 {:.1f}, "
                        "wgmma e4m3 {:.1f} TFLOP/s\n",
                        start.ceilings.read_gb_s, start.ceilings.mma_bf16_tflops,
                        start.ceilings.wgmma_bf16_tflops, start.ceilings.wgmma_e4m3_tflops));
        if (format != BenchFormat::kJsonLines) print(bench_header(format));
      },
      [&](const BenchRow& row) { print(bench_line(row, format)); });
  const bool emulated = options.device.device.starts_with("emulated");
  for (const BenchRow& row : result.rows) {
    if (!emulated && row.of_ceiling > kImpossible) {
      log_message(LogLevel::kError,
                  fmt::format("{} tokens: {:.3f} of the ceiling: the measured ceiling is wrong",
                              row.tokens, row.of_ceiling));
      return kExitFinding;
    }
  }
  return kExitOk;
}

// Over several ranks: other rows, and neither ceilings nor plots, which are one machine's.
int run_rank_bench(const BenchOptions& options, const RankSession& ranks) {
  GANTRY_CHECK(options.svg.empty() && options.peers.empty() && options.output == "md",
               ErrorCode::kUnsupported,
               "bench over ranks prints Markdown or --json: no --svg, --peers, --output");
  RankBenchOptions over_ranks{.directory = options.directory,
                              .shape = options.shape,
                              .format = options.format,
                              .tokens = options.tokens,
                              .routing = options.routing,
                              .activations = options.activations,
                              .seconds = options.seconds,
                              .rotate_gb = options.rotate_gb,
                              .seed = options.seed,
                              .allow = options.allow,
                              .exchange = options.exchange,
                              .parallel = options.exchange.config(options.parallel.config()),
                              .placement = {},
                              .run = {}};
  std::optional<MoeModel> opened;
  if (!options.directory.empty()) opened.emplace(options.directory, /*names_only=*/false);
  over_ranks.placement =
      placement_of(options.parallel.placement,
                   opened ? placed_model(opened->config()) : bench_shape_model(options.shape));
  over_ranks.run.threads = options.common.make_threads();
  over_ranks.run.batch_invariant = options.batch_invariant;
  over_ranks.run.avx512_dot = ranks.agreed_avx512_dot();
  options.exchange.apply(over_ranks.parallel, ranks.world(), /*on_gpu=*/false, over_ranks.run);
  ranks.check_agreement(
      options.parallel, opened ? &opened->checkpoint() : nullptr,
      {{"command", "bench"},
       {"placement", over_ranks.placement.fingerprint()},
       {"exchange", options.exchange.text()},
       {"model", options.directory.empty() ? options.shape + " " + options.format : "a checkpoint"},
       {"tokens", fmt::format("{}", fmt::join(options.tokens, ","))},
       {"routing", fmt::format("{}", fmt::join(options.routing, ","))},
       {"activations", options.activations},
       {"batch invariant", options.batch_invariant ? "yes" : "no"},
       {"seconds, gigabytes, seed",
        fmt::format("{} {} {}", options.seconds, options.rotate_gb, options.seed)},
       {"AVX-512 flavour", flavour_name(over_ranks.run.avx512_dot)}});
  bench_on_ranks(over_ranks, ranks, Output(options.common));
  return kExitOk;
}

int run_bench(const BenchOptions& options, const RankSession& ranks) {
  for (const int64_t tokens : options.tokens) {
    GANTRY_CHECK(tokens >= 1, ErrorCode::kInvalidArgument,
                 "--tokens: expected at least 1, found {}", tokens);
  }
  if (!options.device.is_cpu()) return run_device_bench(options, ranks);
  if (options.parallel.config().world_size() > 1) return run_rank_bench(options, ranks);
  std::vector<BenchRow> plotted;
  for (const std::string& path : options.peers) {
    for (BenchRow& row : read_bench_rows(path))
      plotted.push_back(std::move(row));
  }
  const BenchFormat format =
      options.common.json ? BenchFormat::kJsonLines : parse_bench_format(options.output);
  const Output output(options.common);
  const MachineCeilings ceilings =
      measure_ceilings(host_isas(), options.common.make_threads(), kReadBytes, kCeilingRepeats);
  Bench bench(options, open_model(options, options.batch_invariant), ceilings);
  std::optional<Bench> plain;
  if (options.batch_invariant) plain.emplace(options, open_model(options, false), ceilings);

  if (format == BenchFormat::kMarkdown) {
    output.text(
        fmt::format("{}: {} layer(s) of {} experts, {} weights, {} activations; {}, {} "
                    "thread(s), {}",
                    bench.model().shape, bench.model().layers.size(),
                    bench.model().layers[0]->weights()->num_slots, bench.model().format,
                    bench.model().activations.text, cpu_model_name(), ceilings.threads,
                    bench.model().layers[0]->kernel_name()));
    output.text(
        fmt::format("ceilings: read {:.1f} GB/s, f32 FMA {:.3f}, bf16 dot {:.3f}, AMX {:.3f} "
                    "TFLOP/s, int8 dot {:.3f} TOP/s\n",
                    ceilings.read_gb_s, ceilings.fma_f32_tflops, ceilings.dot_bf16_tflops,
                    ceilings.amx_bf16_tflops, ceilings.dot_int8_tops));
  }
  const auto print = [](const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  };
  if (format != BenchFormat::kJsonLines) print(bench_header(format) + "\n");
  std::string impossible;
  for (const std::string& name : options.routing) {
    const BenchRouting routing = name == "zipf" ? BenchRouting::kZipf : BenchRouting::kUniform;
    for (const int64_t tokens : options.tokens) {
      BenchRow row = bench.run(tokens, routing);
      if (plain) {  // what the mode costs: the same with kernels chosen without it
        row.batch_invariant_ratio = row.ms_median / plain->run(tokens, routing).ms_median;
      }
      print(bench_line(row, format) + "\n");
      plotted.push_back(row);
      if (row.of_ceiling > kImpossible) {
        impossible +=
            fmt::format("{} tokens ({}): {:.3f} of the ceiling\n", tokens, name, row.of_ceiling);
      }
    }
  }
  if (!options.svg.empty()) {
    std::ofstream file(options.svg);
    file << bench_svg(plotted, fmt::format("{} on {}", bench.model().shape, cpu_model_name()));
    file.close();
    GANTRY_CHECK(file.good(), ErrorCode::kIo, "cannot write {}", options.svg);
  }
  if (!impossible.empty()) {
    log_message(LogLevel::kError,
                fmt::format("faster than the machine can be, so the measured ceiling is wrong:\n{}",
                            impossible));
    return kExitFinding;
  }
  return kExitOk;
}

}  // namespace

void add_bench_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command =
      app.add_subcommand("bench", "Times MoE layers next to what the machine can do at most");
  command->add_option("DIR", options->directory, "checkpoint directory (default: a made-up model)");
  command->add_option("--shape", options->shape, "model whose shape to take")
      ->capture_default_str();
  command
      ->add_option(
          "--format", options->format,
          "weight format: bf16, f16, f32, fp8-block, fp8-channel, int8, int4-g128, int4-g64, "
          "int4-g32, w4a8, awq, gptq-asym, mxfp4, nvfp4")
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "numbers of tokens, comma separated")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--routing", options->routing, "uniform, zipf, comma separated")
      ->delimiter(',')
      ->check(CLI::IsMember({"uniform", "zipf"}))
      ->capture_default_str();
  add_activation_option(*command, options->activations);
  add_device_option(*command, options->device);
  command->add_flag("--generic-kernels", options->generic_kernels,
                    "on a GPU: only the kernels that every GPU has");
  command
      ->add_option("--cublas", options->cublas,
                   "on a GPU: cuBLAS' grouped GEMMs of the same rows in bf16, as rows of their "
                   "own: no, yes, or the library's path")
      ->capture_default_str();
  command->add_option("--read-gb", options->read_gb, "on a GPU: what its read ceiling reads")
      ->check(CLI::Range(1e-6, 64.0))
      ->capture_default_str();
  command->add_flag("--batch-invariant", options->batch_invariant,
                    "only kernels whose rows do not depend on their batch, and what that costs");
  command->add_option("-o,--output", options->output, "md, csv or jsonl")
      ->check(CLI::IsMember({"md", "csv", "jsonl"}))
      ->capture_default_str();
  command->add_option("--svg", options->svg, "file for a plot of time against tokens");
  command->add_option("--peers", options->peers, "JSON lines of other programs, for the plot");
  command->add_option("--seconds", options->seconds, "time a case")
      ->check(CLI::Range(0.01, 600.0))
      ->capture_default_str();
  command
      ->add_option("--rotate-gb", options->rotate_gb,
                   "weights to rotate over, so that they come "
                   "from memory; 0: one layer, whose weights may stay in caches")
      ->check(CLI::Range(0.0, 1000.0))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "seed of weights and routings")
      ->capture_default_str();
  add_allow_option(*command, options->allow);
  add_parallel_options(*command, options->parallel);
  add_launch_options(*command, options->parallel.launch);
  add_exchange_options(*command, options->exchange);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_on_ranks(options->parallel, options->common,
                          [&](RankSession& ranks) { return run_bench(*options, ranks); });
    };
  });
}

}  // namespace gantry::cli
