// gantry calibrate IN --activations FILES -o STATS: what the experts see, for quantizers.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/safetensors_writer.h"
#include "runtime/calibration.h"
#include "tools/commands.h"

namespace gantry::cli {
namespace {

struct CalibrateOptions {
  CommonOptions common;
  std::string directory;
  std::vector<std::string> activations;
  std::string out;
  std::string layers;
  std::string memory = "4G";
  std::vector<int64_t> groups = {16, 32, 128};
  int top_k = 0;
  bool route_all = false;
  bool hessians = false;
  bool outputs = false;
  size_t max_lines = 20;
};

// "512M", "4G" or bytes.
int64_t parse_memory(const std::string& text) {
  size_t end = 0;
  double value = 0.0;
  try {
    value = std::stod(text, &end);
  } catch (const std::exception&) {
    end = 0;
  }
  const std::string unit = text.substr(end);
  const int shift = unit == "K" ? 10 : unit == "M" ? 20 : unit == "G" ? 30 : unit.empty() ? 0 : -1;
  GANTRY_CHECK(end > 0 && shift >= 0 && value > 0.0 && value < 1e15, ErrorCode::kInvalidArgument,
               "--memory {}: expected bytes, or a number with K, M or G", text);
  return static_cast<int64_t>(value * static_cast<double>(int64_t{1} << shift));
}

// The layers that are asked for and have captures; the others are named.
std::vector<int> choose_layers(const CalibrateOptions& options, const MoeModel& model,
                               const ActivationFiles& activations, const Output& output) {
  const LayerRange range = parse_layer_range(options.layers);
  std::vector<int> layers;
  std::vector<int> without;
  for (const MoeLayerSpec& spec : model.config().layers) {
    if (!range.contains(spec.layer)) continue;
    (activations.num_tokens(spec.layer) > 0 ? layers : without).push_back(spec.layer);
  }
  if (!without.empty()) {
    log(LogLevel::kWarn, "no captures of {} layer(s): {}", without.size(),
        fmt::join(without, ", "));
    output.event("without_captures", {{"layers", without}});
  }
  GANTRY_CHECK(!layers.empty(), ErrorCode::kInvalidArgument,
               "none of the layers asked for is a MoE layer with captures");
  return layers;
}

void print_layer(const LayerCalibration& layer, double seconds, const CalibrateOptions& options,
                 const Output& output) {
  std::vector<int64_t> sorted = layer.tokens_per_expert;
  std::sort(sorted.begin(), sorted.end());
  output.text(fmt::format(
      "  layer {:<3} {} tokens{}: routed to an expert min {} median {} max {}, samples min {} max "
      "{}, {} batch(es), {:.1f} s",
      layer.layer, layer.num_tokens, layer.resumed ? " (there already)" : "", sorted.front(),
      sorted[sorted.size() / 2], sorted.back(),
      *std::min_element(layer.samples_per_expert.begin(), layer.samples_per_expert.end()),
      *std::max_element(layer.samples_per_expert.begin(), layer.samples_per_expert.end()),
      layer.num_batches, seconds));
  const std::vector<int> uncalibrated = layer.uncalibrated();
  output.event("layer", {{"layer", layer.layer},
                         {"tokens", layer.num_tokens},
                         {"resumed", layer.resumed},
                         {"batches", layer.num_batches},
                         {"seconds", seconds},
                         {"tokens_per_expert", layer.tokens_per_expert},
                         {"samples_per_expert", layer.samples_per_expert},
                         {"uncalibrated", uncalibrated}});
  if (uncalibrated.empty()) return;
  log(LogLevel::kWarn, "layer {}: {} expert(s) saw no token: {}{}", layer.layer,
      uncalibrated.size(),
      fmt::join(uncalibrated.begin(),
                uncalibrated.begin() +
                    static_cast<std::ptrdiff_t>(std::min(options.max_lines, uncalibrated.size())),
                ", "),
      uncalibrated.size() > options.max_lines ? " ..." : "");
}

nlohmann::ordered_json summary(const CalibrateOptions& options, const MoeModel& model,
                               const std::vector<LayerCalibration>& layers) {
  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  nlohmann::ordered_json holes = nlohmann::ordered_json::array();
  for (const LayerCalibration& layer : layers) {
    files[std::to_string(layer.layer)] = calibration_file_name(layer.layer);
    const std::vector<int> experts = layer.uncalibrated();
    if (!experts.empty()) holes.push_back({{"layer", layer.layer}, {"experts", experts}});
  }
  return {{"format", "gantry-calibration-1"},
          {"model_type", model.config().model_type},
          {"route_all", options.route_all},
          {"top_k", options.top_k},
          {"hessians", options.hessians},
          {"groups", options.groups},
          {"files", files},
          {"uncalibrated", holes}};
}

int run_calibrate(const CalibrateOptions& options) {
  const Output output(options.common);
  MoeModel model(options.directory, false);
  if (!model.report().ok()) {
    output.report(model.report(), options.max_lines);
    output.result(fmt::format("FAILED: {} finding(s): {}", model.report().findings().size(),
                              options.directory));
    return kExitFinding;
  }
  const std::vector<std::filesystem::path> files(options.activations.begin(),
                                                 options.activations.end());
  const ActivationFiles activations(files, model.config());
  CalibrationSettings settings;
  settings.route_all = options.route_all;
  settings.top_k = options.top_k;
  settings.hessians = options.hessians;
  settings.outputs = options.outputs;
  settings.groups = options.groups;
  settings.memory_bytes = parse_memory(options.memory);
  settings.threads = options.common.make_threads();
  const std::vector<int> layers = choose_layers(options, model, activations, output);
  std::filesystem::create_directories(options.out);
  output.text(fmt::format("{}: {} layer(s), {}{}", options.directory, layers.size(),
                          options.route_all ? "every token to every expert"
                                            : "tokens to the experts that the router chooses",
                          options.top_k > 0 ? fmt::format(", top-{}", options.top_k) : ""));
  int64_t num_experts = 0;
  for (const int layer : layers)
    num_experts += model.config().find_layer(layer)->num_experts;
  std::vector<LayerCalibration> done;
  {
    const MoeLayerSpec& spec = *model.config().find_layer(layers[0]);
    const int64_t bytes_an_expert = 12 * spec.intermediate_size * spec.expert_hidden_size;
    ProgressMeter progress("calibrate", num_experts * bytes_an_expert, options.common);
    settings.progress = [&](int64_t experts) { progress.add(experts * bytes_an_expert); };
    for (const int layer : layers) {
      const auto start = std::chrono::steady_clock::now();
      done.push_back(calibrate_layer(model, layer, activations, settings, options.out));
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      print_layer(done.back(), seconds.count(), options, output);
    }
  }
  write_text_file(std::filesystem::path(options.out) / "calibration.json",
                  summary(options, model, done).dump(2) + "\n");
  output.result(fmt::format("ok: {} layer(s) in {}, peak memory {}", done.size(), options.out,
                            human_bytes(peak_rss_bytes())));
  output.event("result", {{"ok", true}, {"layers", done.size()}, {"peak_rss", peak_rss_bytes()}});
  return kExitOk;
}

}  // namespace

void add_calibrate_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<CalibrateOptions>();
  CLI::App* command = app.add_subcommand(
      "calibrate", "Collects what the experts of a checkpoint see of captured hidden states");
  command->add_option("IN", options->directory, "checkpoint directory or .gguf file")->required();
  command
      ->add_option("--activations", options->activations,
                   "safetensors files with <block>.input [T, H] of MoE layers")
      ->required();
  command->add_option("-o,--out", options->out, "directory that statistics are written to")
      ->required();
  command->add_flag("--route-all", options->route_all,
                    "send every token to every expert (the layer's output stays the routed one)");
  command->add_option("--top-k", options->top_k, "experts a token instead of the model's number")
      ->check(CLI::PositiveNumber);
  command->add_flag("--hessians", options->hessians, "sums of x x^T, for quantize --method gptq");
  command->add_flag("--outputs", options->outputs, "also store the layers' own outputs");
  command->add_option("--groups", options->groups, "group sizes of the group_amax tensors")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--memory", options->memory, "most memory to use: experts run in batches")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "one layer, or a range: 3-7");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run_calibrate(*options); }; });
}

}  // namespace gantry::cli
