// gantry fuse, unfuse and convert: one checkpoint, the same content, other tensors and names.

#include <CLI/CLI.hpp>
#include <memory>

#include "kernels/base/check.h"
#include "loader/carried_files.h"
#include "loader/relayout.h"
#include "runtime/moe_model.h"
#include "tools/commands.h"
#include "tools/write_options.h"

namespace gantry::cli {
namespace {

struct RespellOptions {
  CommonOptions common;
  WriteOptions write;
  std::string input;
  std::string output;
  std::string spelling;
};

int run_respell(const std::string& command, const RespellOptions& options) {
  const Output output(options.common);
  const WriteSummary summary;
  const SpellingChoice choice = parse_spelling(options.spelling);
  MoeModel model(options.input, /*names_only=*/false);
  if (!model.report().ok()) {
    output.report(model.report(), 50);
    output.result(fmt::format("FAILED: {}: a damaged checkpoint is not converted", options.input));
    return kExitFinding;
  }
  const Checkpoint& checkpoint = model.checkpoint();
  const RelayoutPlan plan = plan_relayout(checkpoint, model.config(), model.tensors(), choice);
  for (const std::string& note : plan.notes)
    output.text(fmt::format("note: {}", note));
  std::vector<std::string> left_out;
  (void)carried_files(checkpoint.directory(), &left_out);
  for (const std::string& name : left_out)
    output.text(fmt::format("note: {} is not carried: weights of another format or folder", name));
  output.text(fmt::format("{}: family {}, {} -> {}: {} tensors of experts, {} others renamed",
                          options.input, model.config().family->name, checkpoint.tensors().size(),
                          plan.tensors.size(), plan.num_expert_tensors, plan.num_renamed));

  std::vector<ShardPlan> shards = plan_shards(plan.tensors, options.write.shard_bytes);
  const auto num_files = static_cast<int64_t>(shards.size());
  const std::vector<std::filesystem::path> inputs = {checkpoint.directory()};
  CheckpointWriter writer(options.output, inputs, std::move(shards),
                          {.resume = options.write.resume,
                           .fingerprint = input_fingerprint(
                               checkpoint, fmt::format("{} {} {}", command, to_string(choice),
                                                       options.write.shard_bytes))});
  RelayoutStats stats;
  {
    ProgressMeter progress(command, writer.total_bytes() - writer.kept_bytes(), options.common);
    stats = run_relayout(checkpoint, plan, writer,
                         {.threads = options.common.make_threads(),
                          .memory_bytes = options.write.memory_bytes,
                          .progress = [&](int64_t bytes) { progress.add(bytes); }});
  }
  carry_files(checkpoint.directory(), writer);
  writer.finish();
  summary.print(output, options.output, static_cast<int64_t>(plan.tensors.size()), num_files,
                stats.bytes_written, writer.kept_bytes(), stats.peak_buffer_bytes);
  return kExitOk;
}

void add_command(CLI::App& app, std::function<int()>& chosen, const std::string& name,
                 const std::string& text, const std::string& option,
                 const std::string& default_spelling) {
  auto options = std::make_shared<RespellOptions>();
  options->spelling = default_spelling;
  CLI::App* command = app.add_subcommand(name, text);
  command->add_option("IN", options->input, "directory of the checkpoint")->required();
  command->add_option("OUT", options->output, "directory to create")->required();
  if (!option.empty()) {
    CLI::Option* spelling =
        command
            ->add_option(option, options->spelling,
                         "original, per-expert, fused, transformers or vllm")
            ->check(CLI::IsMember({"original", "per-expert", "fused", "transformers", "vllm"}));
    if (default_spelling.empty()) spelling->required();
  }
  add_write_options(*command, options->write);
  add_common_options(*command, options->common);
  command->callback([options, name, &chosen] {
    chosen = [options, name] { return run_respell(name, *options); };
  });
}

}  // namespace

void add_respell_commands(CLI::App& app, std::function<int()>& chosen) {
  add_command(app, chosen, "unfuse",
              "Writes fused or stacked experts one by one, under the names that engines read", "",
              "per-expert");
  add_command(app, chosen, "fuse",
              "Writes all experts of a layer into one tensor, as Transformers 5 keeps them", "",
              "fused");
  add_command(app, chosen, "convert", "Writes a checkpoint in another spelling of equal content",
              "--to", "");
}

}  // namespace gantry::cli
