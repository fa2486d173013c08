#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>

#include "kernels/base/check.h"
#include "tools/commands.h"
#include "tools/export_formats.h"
#include "tools/synth_plan.h"
#include "tools/synth_shapes.h"

namespace gantry::cli {
namespace {

struct SynthOptions {
  CommonOptions common;
  std::string shape = "qwen3-30b-a3b";
  std::string format = "bf16";
  std::string directory;
  int layers = 1;
  int experts = 0;
  uint64_t seed = 0;
};

int run_synth(const SynthOptions& options) {
  const Output output(options.common);
  const std::vector<SynthShape> shapes = synth_shapes();
  const auto shape = std::find_if(shapes.begin(), shapes.end(),
                                  [&](const SynthShape& s) { return s.name == options.shape; });
  if (shape == shapes.end()) {
    std::string known;
    for (const SynthShape& s : shapes)
      known += fmt::format("{}{}", known.empty() ? "" : ", ", s.name);
    fail(ErrorCode::kInvalidArgument, "--shape: expected one of {}, found '{}'", known,
         options.shape);
  }
  const std::filesystem::path directory = options.directory;
  GANTRY_CHECK(!std::filesystem::exists(directory / "config.json"), ErrorCode::kInvalidArgument,
               "{}: there is a checkpoint already; it is not overwritten", directory.string());
  nlohmann::ordered_json config_json = shape->config;
  resize(config_json, options.layers, options.experts);
  const SynthPlan plan = plan_synth(*shape, config_json, options.format);
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot create the directory: {}", directory.string(),
               error.message());
  {
    ProgressMeter progress("synth", plan.total_bytes, options.common);
    write_synth(plan, directory, options.seed, options.common.make_threads(),
                [&](int64_t bytes) { progress.add(bytes); });
  }
  output.result(fmt::format("{}: {} MoE layer(s) of {} in {}, {}", directory.string(),
                            plan.layers.size(), shape->name, options.format,
                            human_bytes(plan.total_bytes)));
  output.event("result", {{"directory", directory.string()},
                          {"shape", shape->name},
                          {"format", options.format},
                          {"layers", plan.layers.size()},
                          {"bytes", plan.total_bytes}});
  return kExitOk;
}

}  // namespace

void add_synth_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<SynthOptions>();
  CLI::App* command = app.add_subcommand(
      "synth", "Writes random MoE layers with a real model's shape and an exporter's names");
  command->add_option("OUT", options->directory, "directory to write")->required();
  command->add_option("--shape", options->shape, "model whose shape to take")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "number of MoE layers")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option(
          "--format", options->format,
          fmt::format("how the experts are written: {}", fmt::join(export_format_names(), ", ")))
      ->capture_default_str();
  command->add_option("--experts", options->experts, "experts a layer (0: the model's own)")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "seed of the random weights")->capture_default_str();
  add_common_options(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run_synth(*options); }; });
}

}  // namespace gantry::cli
