// gantry diff A B: how far the weights and outputs of two checkpoints of one model are apart.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/base/check.h"
#include "loader/safetensors_writer.h"
#include "runtime/model_diff.h"
#include "runtime/reference.h"
#include "tools/commands.h"
#include "tools/diff_report.h"

namespace gantry::cli {
namespace {

struct DiffOptions {
  CommonOptions common;
  std::string a;
  std::string b;
  double max_rel = 0.0;  // 0: the default, or none beside --min-snr
  double min_snr = -INFINITY;
  double max_output_rel = INFINITY;
  int64_t tokens = 64;
  uint64_t seed = 1;
  std::string input;
  std::string layers;
  bool experts = false;
  bool smoothed = false;
  std::string svg;
  size_t max_lines = 20;
  std::vector<std::string> allow;
};

// What is wrong with either checkpoint alone: then nothing is compared.
bool report_findings(MoeModel& model, const std::string& name, const DiffOptions& options,
                     const Output& output) {
  output.report(model.report(), options.max_lines);
  if (model.report().ok()) return true;
  output.result(fmt::format("FAILED: {} finding(s): {}", model.report().findings().size(), name));
  output.event("result", {{"ok", false}, {"directory", name}});
  return false;
}

DiffSettings make_settings(const DiffOptions& options, const MoeModel& a) {
  DiffSettings settings;
  if (options.max_rel > 0.0) {
    settings.max_relative = options.max_rel;
  } else if (std::isfinite(options.min_snr)) {
    settings.max_relative = INFINITY;  // the user's own limit takes the default's place
  }
  settings.min_snr_db = options.min_snr;
  settings.max_output_relative = options.max_output_rel;
  settings.num_tokens = options.tokens;
  settings.seed = options.seed;
  settings.smoothed = options.smoothed;
  const LayerRange range = parse_layer_range(options.layers);
  settings.first_layer = range.first;
  settings.last_layer = range.last;
  settings.threads = options.common.make_threads();
  if (!options.input.empty()) {
    Reference reference = read_reference(options.input, a.config());
    settings.token_ids = reference.token_ids;
    for (auto& [layer, block] : reference.blocks)
      settings.hidden_states.emplace(layer, std::move(block.input));
    settings.num_tokens = std::max<int64_t>(1, settings.num_tokens);
  }
  return settings;
}

int64_t bytes_to_compare(const MoeModel& model, const DiffSettings& settings) {
  int64_t bytes = 0;
  for (const MoeLayerSpec& spec : model.config().layers) {
    if (spec.layer < settings.first_layer || spec.layer > settings.last_layer) continue;
    bytes += 4 * 3 * spec.num_experts * spec.intermediate_size * spec.expert_hidden_size;
  }
  return bytes;
}

int run_diff(const DiffOptions& options) {
  const Output output(options.common);
  MoeModel a(options.a, false);
  MoeModel b(options.b, false);
  for (const FindingKind kind : parse_allowed(options.allow)) {
    a.report().allow(kind);
    b.report().allow(kind);
  }
  if (!report_findings(a, options.a, options, output)) return kExitFinding;
  if (!report_findings(b, options.b, options, output)) return kExitFinding;
  require_comparable(a, b);
  const DiffSettings settings = make_settings(options, a);
  const DiffPrinter printer(output,
                            {.all_experts = options.experts, .max_lines = options.max_lines});
  printer.print_head(options.a, a, options.b, b, settings);
  std::vector<LayerDifference> layers;
  int64_t num_too_large = 0;
  {
    ProgressMeter progress("diff", bytes_to_compare(a, settings), options.common);
    for (const MoeLayerSpec& spec : a.config().layers) {
      if (spec.layer < settings.first_layer || spec.layer > settings.last_layer) continue;
      layers.push_back(diff_layer(a, b, spec.layer, settings));
      num_too_large += layers.back().num_too_large();
      printer.print_layer(layers.back());
      progress.add(4 * 3 * spec.num_experts * spec.intermediate_size * spec.expert_hidden_size);
    }
  }
  GANTRY_CHECK(!layers.empty(), ErrorCode::kInvalidArgument, "--layers {}: no MoE layer among them",
               options.layers);
  // Findings that only loading a layer to run it brought up.
  if (!report_findings(a, options.a, options, output)) return kExitFinding;
  if (!report_findings(b, options.b, options, output)) return kExitFinding;
  const ModelTensorDifference rest = diff_model_tensors(a, b, settings);
  printer.print_rest(rest);
  for (const TensorDifference& tensor : rest.tensors)
    num_too_large += tensor.too_large ? 1 : 0;
  if (!options.svg.empty()) write_text_file(options.svg, diff_svg(layers, options.a, options.b));
  const bool ok = num_too_large == 0;
  output.result(ok ? fmt::format("ok: {} and {} differ by no more than {}", options.a, options.b,
                                 limit_text(settings))
                   : fmt::format("FAILED: {} difference(s) beyond {}: {} and {}", num_too_large,
                                 limit_text(settings), options.a, options.b));
  output.event("result", {{"ok", ok}, {"too_large", num_too_large}});
  return ok ? kExitOk : kExitFinding;
}

}  // namespace

void add_diff_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<DiffOptions>();
  CLI::App* command = app.add_subcommand(
      "diff", "Compares two checkpoints of one model: weights, expert by expert, and outputs");
  command->add_option("A", options->a, "the source: directory or .gguf file")->required();
  command->add_option("B", options->b, "what was made from it")->required();
  command
      ->add_option("--max-rel", options->max_rel,
                   "largest ||B - A|| / ||A|| of a matrix or tensor (default 0.5)")
      ->check(CLI::PositiveNumber);
  command->add_option(
      "--min-snr", options->min_snr,
      "least signal-to-noise ratio of a matrix or tensor in dB (6 dB: --max-rel 0.5)");
  command
      ->add_option("--max-output-rel", options->max_output_rel,
                   "largest relative difference of a layer's output (default: none)")
      ->check(CLI::PositiveNumber);
  command->add_option("--tokens", options->tokens, "random tokens to run; 0: compare weights alone")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of the random tokens")->capture_default_str();
  command->add_option(
      "--input", options->input,
      "safetensors file with <block>.input to run instead, as --reference of verify");
  command->add_option("--layers", options->layers, "one layer, or a range: 3-7");
  command->add_flag("--experts", options->experts, "a line for every expert");
  command->add_flag("--smoothed", options->smoothed,
                    "B was smoothed before quantization: take folded scales out of its weights");
  command->add_option("--svg", options->svg, "writes a heat map of the experts' SNR");
  command->add_option("--max-lines", options->max_lines, "lines of a list that are printed as text")
      ->capture_default_str();
  add_allow_option(*command, options->allow);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run_diff(*options); }; });
}

}  // namespace gantry::cli
