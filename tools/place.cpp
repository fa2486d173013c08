// `gantry place`: placements of experts, compared by the load that was counted.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>

#include "kernels/base/check.h"
#include "parallel/eplb.h"
#include "parallel/slot_moves.h"
#include "tools/balance_options.h"
#include "tools/commands.h"

namespace gantry::cli {
namespace {

struct PlaceOptions {
  CommonOptions common;
  EplbOptions eplb;
  std::string counts;
  int ep = 1;
  std::string placement = "linear";
  std::vector<std::string> compare;
  std::string output;
  std::string format = "sglang";
  int num_layers = 0;
};

struct Candidate {
  std::string name;
  ExpertPlacement placement;
  double mean = 0.0;  // summed over layers
  double most = 0.0;
  [[nodiscard]] double overall() const { return most > 0.0 ? mean / most : 1.0; }
};

// The balancedness of a layer under a map; adds it to the candidate's sums.
double measure(Candidate& candidate, const ExpertMap& map, std::span<const int64_t> tokens) {
  const std::vector<double> ranks = expected_rank_loads(map, tokens);
  candidate.mean +=
      std::accumulate(ranks.begin(), ranks.end(), 0.0) / static_cast<double>(ranks.size());
  candidate.most += *std::max_element(ranks.begin(), ranks.end());
  return balancedness(ranks);
}

std::vector<Candidate> candidates(const PlaceOptions& options, const PlacedModel& model) {
  std::vector<std::string> names = {options.placement};
  for (const std::string& name : options.compare) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  std::vector<Candidate> all;
  for (const std::string& name : names)
    all.push_back({name, placement_of(name, model)});
  return all;
}

void write_placement(const PlaceOptions& options, const PlacedModel& model,
                     const std::map<int, std::vector<int32_t>>& rows, const Output& output) {
  const PlacementFormat format = parse_placement_format(options.format);
  const std::string extension = std::filesystem::path(options.output).extension();
  const bool yaml = extension == ".yaml" || extension == ".yml";
  write_text_file(options.output, placement_file_text(format, rows, model, yaml));
  const size_t num_physical = rows.begin()->second.size();
  output.text(fmt::format("wrote {} ({}, {} physical experts a layer)", options.output,
                          options.format, num_physical));
  if (num_physical % static_cast<size_t>(options.ep) != 0) {
    output.text(fmt::format(
        "note: {} physical experts do not divide over {} ranks: gantry takes this file, other "
        "engines want a multiple",
        num_physical, options.ep));
  }
}

int run_place(const PlaceOptions& options) {
  const Output output(options.common);
  const ExpertCounts counts = read_expert_counts(options.counts);
  const PlacedModel model = model_of_counts(counts, options.num_layers);
  std::vector<Candidate> all = candidates(options, model);
  Candidate eplb{.name = "eplb", .placement = {}};
  std::string header = fmt::format("{:>5} {:>10}", "layer", "tokens");
  for (const Candidate& candidate : all)
    header += fmt::format(" {:>14}", candidate.name.substr(0, 14));
  output.text("balancedness (mean / max over ranks; 1 is even):");
  output.text(header + fmt::format(" {:>14} {:>8}", eplb.name, "moves"));
  std::map<int, std::vector<int32_t>> rows;
  std::string policies;  // each said once
  int64_t moves = 0;
  for (const PlacedModel::Layer& layer : model.layers) {
    const auto& tokens = counts.at(layer.layer).tokens_per_expert;
    const EplbPlan plan =
        balance_experts(tokens, {.num_physical = layer.num_experts + options.eplb.redundant,
                                 .num_ranks = options.ep,
                                 .num_groups = options.eplb.groups,
                                 .num_nodes = options.eplb.nodes});
    const std::string policy = fmt::format("eplb: {}: {}", to_string(plan.policy), plan.reason);
    if (policies.find(policy) == std::string::npos) policies += policy + "\n";
    const ExpertMap current = all[0].placement.map_of(layer.layer, layer.num_experts, options.ep);
    const ExpertMap planned =
        keep_slots(current, ExpertMap::with_redundancy(layer.num_experts, plan.physical_to_logical,
                                                       options.ep, Placement::kLinear));
    const int64_t layer_moves = plan_moves(current, planned).num_received();
    moves += layer_moves;
    const auto physical = planned.physical_to_logical();
    rows[layer.layer].assign(physical.begin(), physical.end());

    std::string line = fmt::format("{:>5} {:>10}", layer.layer,
                                   std::accumulate(tokens.begin(), tokens.end(), int64_t{0}));
    nlohmann::ordered_json fields = {{"layer", layer.layer}};
    const auto add = [&](Candidate& candidate, const ExpertMap& map) {
      const double balance = measure(candidate, map, tokens);
      line += fmt::format(" {:>14.3f}", balance);
      fields["balancedness"][candidate.name] = balance;
    };
    for (Candidate& candidate : all)
      add(candidate, candidate.placement.map_of(layer.layer, layer.num_experts, options.ep));
    add(eplb, planned);
    fields["policy"] = to_string(plan.policy);
    fields["experts_moved"] = layer_moves;
    fields["physical_to_logical"] = rows[layer.layer];
    output.text(line + fmt::format(" {:>8}", layer_moves));
    output.event("placement", fields);
  }
  if (!policies.empty()) policies.pop_back();
  output.text(policies);
  all.push_back(std::move(eplb));
  nlohmann::ordered_json overall;
  std::string summary;
  for (const Candidate& candidate : all) {
    overall[candidate.name] = candidate.overall();
    summary += fmt::format("{}{} {:.3f}", summary.empty() ? "" : ", ", candidate.name,
                           candidate.overall());
  }
  if (!options.output.empty()) write_placement(options, model, rows, output);
  output.result(fmt::format(
      "{} layer(s) on {} rank(s), {} redundant: balancedness (sum of mean / sum of max): {}; from "
      "{} to eplb {} expert(s) cross between ranks",
      model.layers.size(), options.ep, options.eplb.redundant, summary, options.placement, moves));
  output.event("result", {{"layers", model.layers.size()},
                          {"ranks", options.ep},
                          {"redundant", options.eplb.redundant},
                          {"balancedness", overall},
                          {"experts_moved", moves}});
  return kExitOk;
}

}  // namespace

void add_place_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<PlaceOptions>();
  CLI::App* command = app.add_subcommand(
      "place", "Compares placements of experts by a load, and finds a balanced one (EPLB)");
  command
      ->add_option("LOAD", options->counts,
                   "tokens per layer and expert: lines of `run --json` or `stats --json`, or "
                   "SGLang's logical_count")
      ->required();
  command->add_option("--ep", options->ep, "expert parallel size")
      ->check(CLI::Range(1, 1 << 16))
      ->required();
  command
      ->add_option("--placement", options->placement,
                   "where the experts are now: linear, round_robin or a file")
      ->capture_default_str();
  command->add_option("--compare", options->compare, "another placement (may be repeated)")
      ->allow_extra_args(false);
  add_eplb_options(*command, options->eplb);
  command->add_option("--output", options->output,
                      "file to write the balanced placement to (JSON; .yaml for tensorrt_llm)");
  command->add_option("--format", options->format, "sglang, vllm or tensorrt_llm")
      ->check(CLI::IsMember({"sglang", "vllm", "tensorrt_llm"}))
      ->capture_default_str();
  command->add_option("--num-layers", options->num_layers,
                      "layers of the model, dense ones too (sglang; default: the last MoE layer "
                      "is the last)");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run_place(*options); }; });
}

}  // namespace gantry::cli
