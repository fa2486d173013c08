#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "kernels/base/check.h"
#include "loader/encoded_job.h"
#include "loader/expected_tensors.h"
#include "runtime/moe_model.h"
#include "tools/commands.h"

namespace gantry::cli {
namespace {

struct InspectOptions {
  CommonOptions common;
  ParallelOptions parallel;
  std::string directory;
  int rank = 0;
};

std::string_view stacking_name(Stacking stacking) {
  switch (stacking) {
    case Stacking::kSingle:
      return "single";
    case Stacking::kPerExpert:
      return "per expert";
    case Stacking::kStacked3d:
      return "fused 3-D";
    case Stacking::kStacked2d:
      return "stacked 2-D";
  }
  return "";
}

std::string pattern_text(const TensorPattern& pattern) {
  std::string text(stacking_name(pattern.stacking));
  text += pattern.orientation == Orientation::kOutIn ? " [out, in]" : " [in, out]";
  if (pattern.gate_up == GateUp::kConcatenated) text += ", gate and up concatenated";
  if (pattern.gate_up == GateUp::kInterleaved) text += ", gate and up interleaved";
  return text;
}

// The spellings of a layer's experts, in the words above.
std::string spelling(const MoeModel& model, const MoeLayerSpec& spec) {
  std::set<std::string> spellings;
  const LayerTensors& tensors = model.tensors().layer(spec.layer);
  for (const LayerTensors::Expert& expert : tensors.experts) {
    for (size_t part = 0; part < expert.parts.size(); ++part) {
      const TensorSource* source = expert.parts[part][0];
      if (source == nullptr && !expert.encoded[part].empty())
        source = expert.encoded[part].begin()->second;
      if (source == nullptr) continue;
      const auto index = static_cast<size_t>(source->ref.pattern);
      spellings.insert(pattern_text(model.config().family->tensors[index]));
    }
  }
  return fmt::format("{}", fmt::join(spellings, " + "));
}

std::string dtype_text(const TensorSource* source) {
  if (source == nullptr || source->tensor->file < 0) return "-";
  return type_text(source->tensor->info);
}

// Of the tensors of a layer's experts, each counted once.
int64_t expert_bytes(const LayerTensors& tensors) {
  std::set<const TensorSource*> sources;
  for (const LayerTensors::Expert& expert : tensors.experts) {
    for (size_t part = 0; part < expert.parts.size(); ++part) {
      sources.insert(expert.parts[part][0]);
      for (const auto& [suffix, source] : expert.encoded[part])
        sources.insert(source);
    }
  }
  sources.erase(nullptr);
  int64_t bytes = 0;
  for (const TensorSource* source : sources)
    bytes += source->tensor->file >= 0 ? source->tensor->info.num_bytes() : 0;
  return bytes;
}

// "bf16", or the scheme of a quantized matrix.
std::string matrix_text(const LayerTensors& tensors, int expert, Part part) {
  const QuantScheme* scheme = tensors.matrices(expert).schemes[expert_part_index(part)];
  const TensorSource* source = tensors.any_source(expert, part);
  const bool says_itself = source != nullptr && !source->tensor->info.block_type.empty();
  return scheme != nullptr && !says_itself ? fmt::format("[{}]", describe(*scheme))
                                           : dtype_text(source);
}

// "0-2,5"
std::string ranges_text(const std::vector<int>& ascending) {
  std::string text;
  for (size_t begin = 0; begin < ascending.size();) {
    size_t end = begin + 1;
    while (end < ascending.size() && ascending[end] == ascending[end - 1] + 1)
      ++end;
    if (!text.empty()) text += ',';
    text += std::to_string(ascending[begin]);
    if (end - begin > 1) text += fmt::format("-{}", ascending[end - 1]);
    begin = end;
  }
  return text;
}

// One projection of a layer's experts: "bf16", or "bf16 (experts 0-2) + fp8 (3)".
std::string part_text(const LayerTensors& tensors, Part part) {
  std::map<std::string, std::vector<int>> experts;
  for (int e = 0; e < static_cast<int>(tensors.experts.size()); ++e)
    experts[matrix_text(tensors, e, part)].push_back(e);
  if (experts.size() == 1) return experts.begin()->first;
  std::vector<std::string> kinds;
  for (const auto& [kind, ids] : experts)
    kinds.push_back(fmt::format("{} (experts {})", kind, ranges_text(ids)));
  return fmt::format("{}", fmt::join(kinds, " + "));
}

// All projections: one text if they are equal, else "w1, w3: ...; w2: ...".
template <typename TextOf>
std::string projections_text(bool gated, TextOf text_of) {
  std::vector<std::pair<std::string, std::string>> groups;  // text, projections
  for (const Part part : kExpertParts) {
    if (part == Part::kW3 && !gated) continue;
    const std::string text = text_of(part);
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& known) { return known.first == text; });
    if (group == groups.end()) {
      groups.emplace_back(text, to_string(part));
    } else {
      group->second += fmt::format(", {}", to_string(part));
    }
  }
  if (groups.size() == 1) return groups[0].first;
  std::string all;
  for (const auto& [text, parts] : groups) {
    if (!all.empty()) all += "; ";
    all += fmt::format("{}: {}", parts, text);
  }
  return all;
}

struct LayerRow {
  std::string text;
  nlohmann::ordered_json fields;
};

LayerRow describe_layer(const MoeModel& model, const MoeLayerSpec& spec) {
  const LayerTensors& tensors = model.tensors().layer(spec.layer);
  const std::string experts =
      projections_text(spec.gated(), [&](Part part) { return part_text(tensors, part); });
  const std::string router = dtype_text(tensors.single(Part::kRouter, TensorKind::kWeight));
  const std::string shared =
      projections_text(is_gated(spec.shared.activation.kind),
                       [&](Part part) { return matrix_text(tensors, -1, shared_part(part)); });
  const int64_t bytes = expert_bytes(tensors);
  LayerRow row;
  row.text =
      fmt::format("E {} top-{} H {} I {}, experts {} {} ({}), router {}, shared {}, {}",
                  spec.num_experts, spec.routing.top_k, spec.hidden_size, spec.intermediate_size,
                  experts, human_bytes(bytes), spelling(model, spec), router,
                  spec.shared.intermediate_size > 0
                      ? fmt::format("{} I {}", shared, spec.shared.intermediate_size)
                      : std::string("none"),
                  to_string(spec.activation.kind));
  row.fields = {{"layer", spec.layer},
                {"num_experts", spec.num_experts},
                {"top_k", spec.routing.top_k},
                {"hidden_size", spec.hidden_size},
                {"intermediate_size", spec.intermediate_size},
                {"experts_dtype", experts},
                {"experts_bytes", bytes},
                {"spelling", spelling(model, spec)},
                {"router_dtype", router},
                {"shared_dtype", shared},
                {"shared_intermediate_size", spec.shared.intermediate_size},
                {"activation", to_string(spec.activation.kind)}};
  return row;
}

// Consecutive layers that look the same share a line.
void print_layers(const MoeModel& model, const Output& output) {
  const auto& layers = model.config().layers;
  for (size_t begin = 0; begin < layers.size();) {
    const LayerRow row = describe_layer(model, layers[begin]);
    output.event("layer", row.fields);
    size_t end = begin + 1;
    while (end < layers.size()) {
      const LayerRow next = describe_layer(model, layers[end]);
      if (next.text != row.text) break;
      output.event("layer", next.fields);
      ++end;
    }
    const std::string range =
        end - begin == 1 ? std::to_string(layers[begin].layer)
                         : fmt::format("{}-{}", layers[begin].layer, layers[end - 1].layer);
    output.text(fmt::format("  layer {:<8} {}", range, row.text));
    begin = end;
  }
}

void print_plan(const MoeModel& model, const InspectOptions& options, const Output& output) {
  ParallelConfig parallel = options.parallel.config();
  parallel.rank = options.rank;
  validate(parallel);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  int64_t reads = 0;
  int64_t quantized = 0;
  int64_t bytes_read = 0;
  int64_t bytes_owned = 0;
  std::string placement;
  const ExpertPlacement by_layer = options.parallel.placement_of(model.config());
  for (const MoeLayerSpec& spec : model.config().layers) {
    const ExpertMap experts = by_layer.map_of(spec.layer, spec.num_experts, parallel.ep_size);
    placement = experts.describe();
    const LoadPlan plan = loader.plan(spec.layer, parallel, experts);
    reads += static_cast<int64_t>(plan.jobs.size());
    quantized += static_cast<int64_t>(plan.encoded_jobs.size());
    bytes_read += plan.bytes_read;
    bytes_owned += plan.bytes_owned;
  }
  output.text(fmt::format("load plan of {}:", describe(parallel)));
  output.text(fmt::format("  experts: {}", placement));
  output.text(
      fmt::format("  {} tensor parts{}, {} to read, {} owned", reads,
                  quantized > 0 ? fmt::format(", {} quantized matrices", quantized) : std::string(),
                  human_bytes(bytes_read), human_bytes(bytes_owned)));
  output.event("plan", {{"rank", parallel.rank},
                        {"placement", placement},
                        {"parts", reads},
                        {"quantized_matrices", quantized},
                        {"bytes_read", bytes_read},
                        {"bytes_owned", bytes_owned}});
}

int run_inspect(const InspectOptions& options) {
  const Output output(options.common);
  MoeModel model(options.directory, /*names_only=*/false);
  const MoeModelConfig& config = model.config();
  output.text(fmt::format("{}: family {} (model_type {}), {} layers, {} of them MoE, prefix '{}'",
                          options.directory, config.family->name, config.model_type,
                          config.num_layers, config.layers.size(),
                          model.tensors().names().prefix()));
  output.text(fmt::format("{} tensors, {} in {} file(s)", model.tensors().counts().total,
                          human_bytes(model.checkpoint().total_bytes()),
                          model.checkpoint().files().size()));
  output.event("model", {{"directory", options.directory},
                         {"family", config.family->name},
                         {"model_type", config.model_type},
                         {"num_layers", config.num_layers},
                         {"num_moe_layers", config.layers.size()},
                         {"prefix", model.tensors().names().prefix()},
                         {"bytes", model.checkpoint().total_bytes()}});
  print_layers(model, output);
  output.report(model.report(), 20);
  if (!model.report().ok()) return kExitFinding;
  print_plan(model, options, output);
  return kExitOk;
}

}  // namespace

void add_inspect_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "What a checkpoint holds and what a rank would load of it");
  command->add_option("DIR", options->directory, "checkpoint directory or .gguf file")->required();
  command->add_option("--rank", options->rank, "the rank whose load plan is shown")
      ->capture_default_str();
  add_parallel_options(*command, options->parallel);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run_inspect(*options); }; });
}

}  // namespace gantry::cli
