#include <CLI/CLI.hpp>
#include <array>
#include <memory>
#include <optional>
#include <set>

#include "kernels/base/check.h"
#include "loader/input_scale_job.h"
#include "runtime/verification.h"
#include "tools/activation_option.h"
#include "tools/commands.h"
#include "tools/device_option.h"
#include "tools/exchange_option.h"
#include "tools/rank_session.h"
#include "tools/verify_matrix.h"

namespace gantry::cli {
namespace {

struct VerifyOptions {
  CommonOptions common;
  ParallelOptions parallel;
  ExchangeOption exchange;
  std::string directory;
  bool batch_invariant = false;
  bool matrix = false;
  bool names_only = false;
  std::string reference;
  std::string activations;  // empty: as the checkpoint declares
  DeviceOption device;
  double tolerance = 0.0;  // 0: the default of the activations
  size_t max_findings = 50;
  std::vector<std::string> allow;
};

// Which TP x EP splits the model allows, and why the others are not possible.
void print_feasibility(const MoeModelConfig& config, const Output& output) {
  constexpr std::array<int, 7> kSizes = {1, 2, 4, 8, 16, 32, 64};
  std::set<std::string> reasons;
  std::string header = "  tp \\ ep";
  for (const int ep : kSizes)
    header += fmt::format("{:>6}", ep);
  output.text("splits that can be loaded (tp down, ep across):");
  output.text(header);
  for (const int tp : kSizes) {
    std::string row = fmt::format("  {:>7}", tp);
    for (const int ep : kSizes) {
      std::string reason;
      for (const MoeLayerSpec& layer : config.layers) {
        reason = infeasible_reason(layer, tp, ep);
        if (!reason.empty()) break;
      }
      row += fmt::format("{:>6}", reason.empty() ? "yes" : "no");
      if (!reason.empty()) reasons.insert(reason);
      output.event("split",
                   {{"tp", tp}, {"ep", ep}, {"feasible", reason.empty()}, {"reason", reason}});
    }
    output.text(row);
  }
  for (const std::string& reason : reasons)
    output.text(fmt::format("  no: {}", reason));
}

void print_counts(const NameCounts& counts, const Output& output) {
  output.text(fmt::format(
      "names: {} in all = {} of experts + {} of routers and shared experts + {} of other parts of "
      "the model + {} of MTP layers + {} read by nothing + {} unknown",
      counts.total, counts.expert, counts.layer, counts.model, counts.auxiliary, counts.ignored,
      counts.unknown));
  output.event("names", {{"total", counts.total},
                         {"expert", counts.expert},
                         {"layer", counts.layer},
                         {"model", counts.model},
                         {"auxiliary", counts.auxiliary},
                         {"ignored", counts.ignored},
                         {"unknown", counts.unknown}});
}

int finish(MoeModel& model, const VerifyOptions& options, const Output& output) {
  const bool ok = model.report().ok();
  const size_t count = model.report().findings().size();
  output.report(model.report(), options.max_findings);
  output.result(ok ? fmt::format("ok: {}", options.directory)
                   : fmt::format("FAILED: {} finding(s): {}", count, options.directory));
  output.event("result", {{"ok", ok}, {"findings", count}, {"directory", options.directory}});
  return ok ? kExitOk : kExitFinding;
}

int64_t bytes_of_experts(const MoeModel& model) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : model.checkpoint().tensors()) {
    if (model.tensors().names().parse(name).name_class == NameClass::kMoe) {
      bytes += tensor.info.num_bytes();
    }
  }
  return bytes;
}

void print_block(const BlockResult& block, const Output& output) {
  output.text(fmt::format("  layer {:<3} {:<40} rel {:.3e} {} {:.1e}", block.layer, block.name,
                          block.error, block.ok() ? "<=" : ">", block.limit));
  output.event("block", {{"layer", block.layer},
                         {"name", block.name},
                         {"rel", block.error},
                         {"limit", block.limit},
                         {"ok", block.ok()}});
}

int run_verify(const VerifyOptions& options, RankSession& ranks) {
  const Output output(options.common);
  const ParallelConfig parallel = options.exchange.config(options.parallel.config());
  const auto device = open_chosen_device(options.device, options.activations, ranks, output);
  GANTRY_CHECK(device == nullptr || options.activations != "scheme", ErrorCode::kInvalidArgument,
               "verify on a device compares bf16 activations, found --activations scheme");
  MoeModel model(options.directory, options.names_only);
  for (const FindingKind kind : parse_allowed(options.allow))
    model.report().allow(kind);
  const MoeModelConfig& config = model.config();
  output.text(fmt::format("{}: family {}, {} MoE layers of {}", options.directory,
                          config.family->name, config.layers.size(), config.num_layers));
  if (config.quant) {
    output.text(fmt::format("quantized: {}", config.quant->methods()));
  }
  const ExpertPlacement placement = options.parallel.placement_of(config);
  const Avx512Dot avx512_dot = ranks.agreed_avx512_dot();
  ranks.check_agreement(
      options.parallel, &model.checkpoint(),
      {{"command", "verify"},
       {"placement", placement.fingerprint()},
       {"reference", options.reference.empty() ? "no" : "yes"},
       {"activations", options.activations.empty() ? "as declared" : options.activations},
       {"exchange", options.exchange.text()},
       {"device", options.device.text()},
       {"batch invariant", options.batch_invariant ? "yes" : "no"},
       {"AVX-512 flavour", flavour_name(avx512_dot)}});
  print_counts(model.tensors().counts(), output);
  if (options.names_only || !model.report().ok()) return finish(model, options, output);
  print_feasibility(config, output);

  std::optional<Reference> reference;
  if (!options.reference.empty()) reference = read_reference(options.reference, config);
  const ActivationChoice activations = choose_activations(
      device == nullptr ? options.activations : "bf16", model_activations(config, model.tensors()),
      !reference || reference->has_act_quant());
  output.text(fmt::format("activations: {}", activations.text));
  output.event("activations",
               {{"dtype", to_string(activations.dtype)}, {"text", activations.text}});
  FusedMoeOptions moving;
  moving.batch_invariant = options.batch_invariant;
  options.exchange.apply(parallel, ranks.world(), device != nullptr, moving);
  if (parallel.world_size() > 1 && !config.layers.empty()) {
    output.text(describe_exchange(options.exchange, parallel, device != nullptr,
                                  config.layers[0].routing.num_slots()));
  }
  if (options.matrix) {
    GANTRY_CHECK(reference.has_value() && parallel.world_size() == 1, ErrorCode::kInvalidArgument,
                 "--matrix: expected --reference, and no --tp, --ep or --dp: it runs them all");
    GANTRY_CHECK(device == nullptr, ErrorCode::kInvalidArgument,
                 "--matrix with --device {}: it runs exchanges that GPUs do not have",
                 options.device.device);
    VerifySettings settings;
    settings.activations = activations.dtype;
    settings.tolerance = options.tolerance;
    settings.load.threads = options.common.make_threads();
    verify_matrix(model, *reference, settings, output);
    return finish(model, options, output);
  }
  VerifyResult verified;
  {
    ProgressMeter progress("verify", bytes_of_experts(model), options.common);
    VerifySettings settings;
    settings.parallel = parallel;
    settings.ranks =
        setup_of(ranks, options.device, options.exchange, options.parallel.launch, device);
    settings.avx512_dot = avx512_dot;
    settings.placement = placement;
    settings.activations = activations.dtype;
    settings.tolerance = options.tolerance;
    settings.exchange = moving.exchange;
    settings.no_reduce = moving.no_reduce;
    settings.batch_invariant = options.batch_invariant;
    settings.load.threads = options.common.make_threads();
    settings.load.progress = [&](int64_t bytes) { progress.add(bytes); };
    verified = verify_model(model, reference ? &*reference : nullptr, settings,
                            [&](const BlockResult& block) { print_block(block, output); });
  }
  const LoadStats& stats = verified.load;
  output.text(fmt::format("read {} for {} owned by the rank(s)", human_bytes(stats.bytes_read),
                          human_bytes(stats.bytes_owned)));
  output.event("load", {{"bytes_read", stats.bytes_read}, {"bytes_owned", stats.bytes_owned}});
  if (verified.moved.collectives > 0) {
    output.text(fmt::format("moved {} between ranks (dispatch {}, combine {}, magnitudes {})",
                            human_bytes(verified.moved.received()),
                            human_bytes(verified.moved.dispatch_received),
                            human_bytes(verified.moved.combine_received),
                            human_bytes(verified.moved.magnitudes_received)));
    output.event("moved", {{"dispatch_bytes", verified.moved.dispatch_received},
                           {"combine_bytes", verified.moved.combine_received},
                           {"magnitude_bytes", verified.moved.magnitudes_received},
                           {"overflows", verified.moved.overflows}});
  }
  ranks.print_figures(output, verified.own_load);
  return finish(model, options, output);
}

}  // namespace

void add_verify_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* command = app.add_subcommand(
      "verify", "Proves that a checkpoint loads completely and computes what it should");
  command->add_option("DIR", options->directory, "checkpoint directory or .gguf file")->required();
  command->add_flag("--names-only", options->names_only,
                    "check names from config.json and the index alone, without weight files");
  command->add_option("--reference", options->reference,
                      "safetensors file with <block>.input and <block>.output to compare with");
  add_activation_option(*command, options->activations);
  add_device_option(*command, options->device);
  command->add_option("--tolerance", options->tolerance,
                      "largest relative error (default 1e-5 for f32, 1e-2 for bf16; for a scheme "
                      "by its format and the batch)");
  command->add_option("--max-findings", options->max_findings, "findings printed as text")
      ->capture_default_str();
  add_allow_option(*command, options->allow);
  command->add_flag("--batch-invariant", options->batch_invariant,
                    "only kernels whose rows do not depend on their batch");
  command->add_flag(
      "--matrix", options->matrix,
      "many layouts of ranks with both exchanges and both orders of sums, as a table");
  add_parallel_options(*command, options->parallel);
  add_launch_options(*command, options->parallel.launch);
  add_exchange_options(*command, options->exchange);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = [options] {
      return run_on_ranks(options->parallel, options->common,
                          [&](RankSession& ranks) { return run_verify(*options, ranks); });
    };
  });
}

}  // namespace gantry::cli
