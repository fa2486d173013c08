#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>

#include "kernels/base/check.h"
#include "tools/commands.h"
#include "tools/quantize_run.h"
#include "tools/write_options.h"

namespace gantry::cli {
namespace {

struct QuantizeCommand {
  CommonOptions common;
  std::string input;
  std::string output;
  QuantizeRequest request;
  std::string method = "rtn";
  std::string stats;
  std::string config;  ///< of a GGUF file
  bool act_order = false;
  double damping = 0.01;
  WriteOptions write{.memory_bytes = int64_t{4} << 30};
};

// What the bytes that are written depend on.
std::string fingerprint(const QuantizeCommand& command, const Checkpoint& checkpoint,
                        const std::filesystem::path& config_file) {
  std::vector<std::filesystem::path> files = {config_file};
  for (const WeightFile& file : checkpoint.files())
    files.push_back(file.path());
  if (!command.stats.empty()) {
    for (const auto& entry : std::filesystem::directory_iterator(command.stats))
      files.push_back(entry.path());
  }
  std::sort(files.begin() + 1, files.end());
  return fmt::format("quantize 1 {} {} {} {} {} include {} ignore {} {}", command.request.format,
                     command.request.group_size, command.method,
                     command.act_order + 2 * command.request.desc_act, command.damping,
                     fmt::join(command.request.include, "|"),
                     fmt::join(command.request.ignore, "|"), fingerprint_files(files));
}

// Every matrix takes and gives back the same few buffers of megabytes: kept by the process, they
// are not cleared by the kernel each time (half of the time in system calls otherwise).
void keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}

int run_quantize_command(const QuantizeCommand& command) {
  keep_freed_memory();
  const Output output(command.common);
  MoeModel model(command.input, /*names_only=*/false);
  if (!model.report().ok()) {
    output.report(model.report(), 50);
    output.result(fmt::format("FAILED: {}: {} finding(s); nothing is written", command.input,
                              model.report().findings().size()));
    return kExitFinding;
  }
  GANTRY_CHECK(!command.request.desc_act || command.method == "gptq", ErrorCode::kInvalidArgument,
               "--desc-act: expected --method gptq, found {}", command.method);
  GANTRY_CHECK(command.config.empty() || is_gguf(model), ErrorCode::kInvalidArgument,
               "--config is of GGUF files, {} has a config.json of its own", command.input);
  std::optional<GgufSource> gguf;
  if (is_gguf(model)) gguf = read_gguf_source(model, command.input, command.config);
  const QuantizePlan plan = plan_quantize(model, command.request, gguf ? &*gguf : nullptr);
  const bool alone = std::filesystem::is_regular_file(command.input);
  QuantizeRun run{.directory = command.output,
                  .alone = alone ? std::filesystem::path(command.input) : std::filesystem::path(),
                  .shard_bytes = command.write.shard_bytes,
                  .memory_bytes = command.write.memory_bytes,
                  .resume = command.write.resume,
                  .fingerprint = fingerprint(
                      command, model.checkpoint(),
                      gguf ? gguf->config_file : model.checkpoint().directory() / "config.json"),
                  .threads = command.common.make_threads(),
                  .ranges = {},
                  .hessians = nullptr,
                  .awq = nullptr,
                  .progress = {}};
  if (!command.stats.empty()) run.ranges = InputRanges::read(command.stats, model.config());
  StatsHessians hessians(command.stats, {.damping = command.damping,
                                         .order = command.act_order || command.request.desc_act
                                                      ? GptqOrder::kByActivation
                                                      : GptqOrder::kInOrder});
  GANTRY_CHECK(command.method == "rtn" || !command.stats.empty(), ErrorCode::kInvalidArgument,
               "--method {}: expected --stats of gantry calibrate --hessians", command.method);
  const auto start = std::chrono::steady_clock::now();
  if (command.method == "gptq") run.hessians = &hessians;
  std::optional<AwqScaling> awq;
  if (command.method == "awq")
    run.awq = &awq.emplace(model, plan, hessians, command.stats, run.threads);
  QuantizeResult result;
  {
    ProgressMeter progress("quantize", plan.source_bytes, command.common);
    run.progress = [&](int64_t bytes) { progress.add(bytes); };
    result = run_quantize(model, plan, run);
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  output.result(fmt::format(
      "{}: {} of {} matrices in {}, {} read and {} written in {:.1f} s ({:.2f} GB/s), peak memory "
      "{}",
      command.output, plan.format.name, plan.num_quantized, command.method,
      human_bytes(result.bytes_read), human_bytes(result.bytes_written), seconds,
      static_cast<double>(result.bytes_read) / seconds / 1e9, human_bytes(peak_rss_bytes())));
  output.event("result", {{"directory", command.output},
                          {"format", plan.format.name},
                          {"method", command.method},
                          {"matrices", plan.num_quantized},
                          {"bytes_read", result.bytes_read},
                          {"bytes_written", result.bytes_written},
                          {"bytes_kept", result.bytes_kept},
                          {"seconds", seconds},
                          {"peak_rss", peak_rss_bytes()}});
  return kExitOk;
}

}  // namespace

void add_quantize_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<QuantizeCommand>();
  CLI::App* command =
      app.add_subcommand("quantize", "Quantizes the experts of a checkpoint for a named consumer");
  command->add_option("IN", options->input, "checkpoint directory, or a GGUF file")->required();
  command->add_option("OUT", options->output, "directory to write")->required();
  command
      ->add_option(
          "--format", options->request.format,
          fmt::format("how the experts are written: {}", fmt::join(export_format_names(), ", ")))
      ->required();
  command
      ->add_option("--group-size", options->request.group_size,
                   "inputs of one scale of integers (0: the format's own)")
      ->check(CLI::Range(0, 65536));
  command->add_option("--method", options->method, "how codes are chosen")
      ->check(CLI::IsMember({"rtn", "gptq", "awq"}))
      ->capture_default_str();
  command->add_option("--stats", options->stats,
                      "what gantry calibrate wrote: for static input scales, gptq and awq");
  command->add_option("--config", options->config,
                      "of a GGUF file: the model's config.json (else the one beside the file)");
  command->add_flag("--act-order", options->act_order,
                    "gptq: columns by descending activation, scales chosen beforehand");
  command->add_flag("--desc-act", options->request.desc_act,
                    "gptq: the same order, with groups of columns in it (g_idx)");
  command->add_option("--damping", options->damping, "gptq: share of the mean diagonal")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
  command->add_option("--include", options->request.include,
                      "also quantize these linear layers (wildcard, or re:REGEX); repeatable");
  command->add_option("--ignore", options->request.ignore,
                      "leave these linear layers as they are; repeatable");
  add_write_options(*command, options->write);
  add_common_options(*command, options->common);
  command->callback(
      [options, &chosen] { chosen = [options] { return run_quantize_command(*options); }; });
}

}  // namespace gantry::cli
