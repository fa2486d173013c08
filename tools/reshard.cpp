// gantry reshard: the same tensors in other files, or what one rank of TP x EP holds.

#include <CLI/CLI.hpp>
#include <memory>

#include "kernels/base/check.h"
#include "loader/carried_files.h"
#include "loader/relayout.h"
#include "loader/reshard_plan.h"
#include "runtime/moe_model.h"
#include "tools/commands.h"
#include "tools/write_options.h"

namespace gantry::cli {
namespace {

struct ReshardOptions {
  CommonOptions common;
  WriteOptions write;
  ParallelOptions parallel;
  std::string input;
  std::string output;
  int rank = -1;  ///< -1: all ranks' tensors
};

struct Resharded {
  RelayoutPlan plan;
  std::vector<ShardPlan> shards;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
};

Resharded plan_reshard(const ReshardOptions& options, const Checkpoint& checkpoint,
                       MoeModel* model) {
  Resharded result;
  const int64_t shard_bytes = options.write.shard_bytes;
  if (model == nullptr) {
    result.plan = plan_copy(checkpoint);
    result.shards = plan_shards(result.plan.tensors, shard_bytes);
    return result;
  }
  ParallelConfig parallel = options.parallel.config();
  const ExpertPlacement placement = options.parallel.placement_of(model->config());
  if (options.rank < 0) {
    GANTRY_CHECK(parallel.tp_size == 1, ErrorCode::kInvalidArgument,
                 "--tp cuts tensors, so each rank has a checkpoint of its own: expected --rank 0 "
                 "to {}",
                 parallel.world_size() - 1);
    result.plan = plan_copy(checkpoint);
    result.shards = shards_by_rank(result.plan, model->config(), model->tensors(), parallel.ep_size,
                                   placement, shard_bytes);
    return result;
  }
  parallel.rank = options.rank;
  for (const MoeLayerSpec& layer : model->config().layers) {
    const std::string reason = infeasible_reason(layer, parallel.tp_size, parallel.ep_size);
    GANTRY_CHECK(reason.empty(), ErrorCode::kUnsupported, "layer {}: {}", layer.layer, reason);
  }
  result.plan = plan_rank(checkpoint, model->config(), model->tensors(), parallel, placement);
  result.shards = plan_shards(result.plan.tensors, shard_bytes);
  result.metadata = rank_metadata(parallel, placement);
  return result;
}

int run_reshard(const ReshardOptions& options) {
  const Output output(options.common);
  const WriteSummary summary;
  const bool by_rank = options.parallel.tp > 1 || options.parallel.ep > 1 || options.rank >= 0;
  std::unique_ptr<MoeModel> model;
  std::unique_ptr<Checkpoint> plain;
  if (by_rank) {
    model = std::make_unique<MoeModel>(options.input, /*names_only=*/false);
    if (!model->report().ok()) {
      output.report(model->report(), 50);
      output.result(fmt::format("FAILED: {}: a damaged checkpoint is not cut", options.input));
      return kExitFinding;
    }
  } else {
    plain = std::make_unique<Checkpoint>(Checkpoint::open(options.input));
  }
  const Checkpoint& checkpoint = model ? model->checkpoint() : *plain;
  Resharded result = plan_reshard(options, checkpoint, model.get());
  const auto num_files = static_cast<int64_t>(result.shards.size());
  const std::string command =
      fmt::format("reshard {} {} {} {} {}", options.write.shard_bytes, options.parallel.tp,
                  options.parallel.ep, options.parallel.placement, options.rank);
  const std::vector<std::filesystem::path> inputs = {checkpoint.directory()};
  CheckpointWriter writer(options.output, inputs, std::move(result.shards),
                          {.resume = options.write.resume,
                           .fingerprint = input_fingerprint(checkpoint, command),
                           .metadata = result.metadata});
  RelayoutStats stats;
  {
    ProgressMeter progress("reshard", writer.total_bytes() - writer.kept_bytes(), options.common);
    stats = run_relayout(checkpoint, result.plan, writer,
                         {.threads = options.common.make_threads(),
                          .memory_bytes = options.write.memory_bytes,
                          .progress = [&](int64_t bytes) { progress.add(bytes); }});
  }
  carry_files(checkpoint.directory(), writer);
  writer.finish();
  summary.print(output, options.output, static_cast<int64_t>(result.plan.tensors.size()), num_files,
                stats.bytes_written, writer.kept_bytes(), stats.peak_buffer_bytes);
  return kExitOk;
}

}  // namespace

void add_reshard_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<ReshardOptions>();
  CLI::App* command = app.add_subcommand(
      "reshard", "Writes the same tensors in other files: by size, or by rank of TP x EP");
  command->add_option("IN", options->input, "directory of the checkpoint")->required();
  command->add_option("OUT", options->output, "directory to create")->required();
  command
      ->add_option("--rank", options->rank,
                   "write only what this rank holds, its experts cut for TP (rank = ep_rank * "
                   "tp + tp_rank)")
      ->check(CLI::Range(0, 1 << 20));
  add_parallel_options(*command, options->parallel);
  add_write_options(*command, options->write);
  add_common_options(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run_reshard(*options); }; });
}

}  // namespace gantry::cli
