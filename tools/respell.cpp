// gantry fuse, unfuse and convert: one checkpoint, the same content, other tensors and names; also
// between safetensors and GGUF where the bits are equal.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <variant>

#include "kernels/base/check.h"
#include "loader/carried_files.h"
#include "loader/gguf_export.h"
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
  std::string config;  ///< GGUF to safetensors: the config.json of the result
};

constexpr std::string_view kGguf = "gguf";
constexpr std::string_view kGgufFile = "model.gguf";

bool is_gguf(const MoeModel& model) { return model.config().family->name == kGguf; }

/// What a conversion needs besides the source.
struct Conversion {
  RelayoutTarget target;
  std::optional<MoeModelConfig> config;  ///< of another family's result
  std::filesystem::path config_file;     ///< where it was read
};

/// What stood before "layers." in the safetensors file that a GGUF file was made from, if it was.
std::string stored_prefix(const Checkpoint& checkpoint, const FamilySpec& family) {
  const GgufFile file(checkpoint.files().front().path());
  const auto found = file.header().metadata.find(kGgufPrefixKey);
  if (found == file.header().metadata.end()) return std::string(family.default_prefix);
  const auto* prefix = std::get_if<std::string>(&found->second);
  GANTRY_CHECK(prefix != nullptr, ErrorCode::kFormat, "{}: {}: expected a string",
               file.path().string(), kGgufPrefixKey);
  return *prefix;
}

/// GGUF's metadata say less than a config.json: it is given, or lies beside the file.
Conversion from_gguf(const MoeModel& model, const RespellOptions& options, SpellingChoice choice) {
  Conversion result;
  result.config_file = options.config;
  if (options.config.empty()) result.config_file = model.checkpoint().directory() / "config.json";
  GANTRY_CHECK(std::filesystem::exists(result.config_file), ErrorCode::kInvalidArgument,
               "{}: metadata of GGUF say less than a config.json does: expected one at {}, or "
               "--config FILE",
               options.input, result.config_file.string());
  constexpr int64_t kMaxConfigBytes = int64_t{16} << 20;
  result.config = read_moe_config(read_text_file(result.config_file, kMaxConfigBytes),
                                  result.config_file.string());
  GANTRY_CHECK(!result.config->quant, ErrorCode::kInvalidArgument,
               "{}: has a quantization config, the tensors of {} are not quantized",
               result.config_file.string(), options.input);
  const auto difference = config_difference(model.config(), *result.config);
  GANTRY_CHECK(!difference, ErrorCode::kFormat, "{} and {} are not of one model: {}", options.input,
               result.config_file.string(), *difference);
  const std::string architecture = model.config().model_type.substr(kGguf.size() + 1);
  result.target = {.choice = choice,
                   .family = result.config->family,
                   .prefix = stored_prefix(model.checkpoint(), *result.config->family),
                   .other_name = [architecture](const std::string& name) {
                     return from_gguf_name(architecture, name);
                   }};
  return result;
}

Conversion conversion_of(const MoeModel& model, const RespellOptions& options) {
  GANTRY_CHECK(options.config.empty() || is_gguf(model), ErrorCode::kInvalidArgument,
               "--config is of GGUF files, {} has a config.json of its own", options.input);
  Conversion result;
  if (options.spelling == kGguf) {
    const std::string architecture(gguf_architecture(model.config().model_type));
    const FamilySpec* family = find_family(fmt::format("{}.{}", kGguf, architecture));
    GANTRY_CHECK(family != nullptr, ErrorCode::kUnsupported, "GGUF's {} is not known",
                 architecture);
    result.target = {.choice = SpellingChoice::kOriginal,
                     .family = family,
                     .prefix = "",
                     .other_name = [architecture](const std::string& name) {
                       return to_gguf_name(architecture, name);
                     }};
    return result;
  }
  const SpellingChoice choice = parse_spelling(options.spelling);
  if (is_gguf(model)) return from_gguf(model, options, choice);
  result.target.choice = choice;
  return result;
}

RelayoutStats run_plan(const std::string& command, const RespellOptions& options,
                       const Checkpoint& checkpoint, const RelayoutPlan& plan, TensorSink& sink,
                       int64_t bytes) {
  ProgressMeter progress(command, bytes, options.common);
  return run_relayout(checkpoint, plan, sink,
                      {.threads = options.common.make_threads(),
                       .memory_bytes = options.write.memory_bytes,
                       .progress = [&](int64_t count) { progress.add(count); }});
}

/// One GGUF file, and the files beside the weights.
RelayoutStats write_gguf(const std::string& command, const RespellOptions& options,
                         const MoeModel& model, const RelayoutPlan& plan,
                         CheckpointWriter& writer) {
  std::vector<TensorInfo> tensors = plan.tensors;
  const std::string header =
      gguf_header_bytes(gguf_metadata(model.config(), model.checkpoint().config_text(),
                                      model.tensors().names().prefix(), tensors),
                        tensors, std::string(kGgufFile));
  const auto file = writer.create_file(kGgufFile, tensors.back().end);
  GgufWriter sink(header, tensors, *file);
  const RelayoutStats stats =
      run_plan(command, options, model.checkpoint(), plan, sink, plan.total_bytes);
  sink.finish();
  return stats;
}

int run_respell(const std::string& command, const RespellOptions& options) {
  const Output output(options.common);
  const WriteSummary summary;
  MoeModel model(options.input, /*names_only=*/false);
  if (!model.report().ok()) {
    output.report(model.report(), 50);
    output.result(fmt::format("FAILED: {}: a damaged checkpoint is not converted", options.input));
    return kExitFinding;
  }
  const Checkpoint& checkpoint = model.checkpoint();
  const Conversion conversion = conversion_of(model, options);
  const bool to_gguf = options.spelling == kGguf;
  GANTRY_CHECK(!to_gguf || !options.write.resume, ErrorCode::kInvalidArgument,
               "--resume is not possible with one GGUF file");
  const RelayoutPlan plan =
      plan_relayout(checkpoint, model.config(), model.tensors(), conversion.target);
  for (const std::string& note : plan.notes)
    output.text(fmt::format("note: {}", note));
  // A GGUF file that was named itself lies among others of any kind: these are not carried.
  const bool alone = std::filesystem::is_regular_file(options.input);
  std::vector<std::string> left_out;
  if (!alone) (void)carried_files(checkpoint.directory(), &left_out);
  for (const std::string& name : left_out) {
    const bool own = std::any_of(checkpoint.files().begin(), checkpoint.files().end(),
                                 [&](const WeightFile& f) { return f.path().filename() == name; });
    if (own) continue;
    output.text(fmt::format("note: {} is not carried: weights of another format or folder", name));
  }
  output.text(fmt::format("{}: family {}, {} -> {}: {} tensors of experts, {} others renamed",
                          options.input, model.config().family->name, checkpoint.tensors().size(),
                          plan.tensors.size(), plan.num_expert_tensors, plan.num_renamed));

  std::vector<ShardPlan> shards;
  if (!to_gguf) shards = plan_shards(plan.tensors, options.write.shard_bytes);
  const auto num_files = to_gguf ? 1 : static_cast<int64_t>(shards.size());
  const std::vector<std::filesystem::path> inputs = {alone ? std::filesystem::path(options.input)
                                                           : checkpoint.directory()};
  CheckpointWriter writer(
      options.output, inputs, std::move(shards),
      {.resume = options.write.resume,
       .fingerprint =
           input_fingerprint(checkpoint, fmt::format("{} {} {} {}", command, options.spelling,
                                                     options.write.shard_bytes, options.config))});
  const RelayoutStats stats = to_gguf ? write_gguf(command, options, model, plan, writer)
                                      : run_plan(command, options, checkpoint, plan, writer,
                                                 writer.total_bytes() - writer.kept_bytes());
  const std::set<std::string> anew =
      conversion.config ? std::set<std::string>{"config.json"} : std::set<std::string>{};
  if (!alone) carry_files(checkpoint.directory(), writer, anew);
  if (conversion.config) writer.copy_file(conversion.config_file, "config.json");
  writer.finish();
  summary.print(output, options.output, static_cast<int64_t>(plan.tensors.size()), num_files,
                stats.bytes_written, writer.kept_bytes(), stats.peak_buffer_bytes);
  return kExitOk;
}

void add_command(CLI::App& app, std::function<int()>& chosen, const std::string& name,
                 const std::string& text, const std::string& default_spelling) {
  auto options = std::make_shared<RespellOptions>();
  options->spelling = default_spelling;
  CLI::App* command = app.add_subcommand(name, text);
  command->add_option("IN", options->input, "directory of the checkpoint")->required();
  command->add_option("OUT", options->output, "directory to create")->required();
  if (default_spelling.empty()) {
    command
        ->add_option("--to", options->spelling,
                     "original, per-expert, fused, transformers, vllm or gguf")
        ->check(CLI::IsMember({"original", "per-expert", "fused", "transformers", "vllm", "gguf"}))
        ->required();
  }
  command->add_option("--config", options->config,
                      "of a GGUF file's result: its config.json (else the one beside the file)");
  add_write_options(*command, options->write);
  add_common_options(*command, options->common);
  command->callback([options, name, &chosen] {
    chosen = [options, name] { return run_respell(name, *options); };
  });
}

}  // namespace

void add_respell_commands(CLI::App& app, std::function<int()>& chosen) {
  add_command(app, chosen, "unfuse",
              "Writes fused or stacked experts one by one, under the names that engines read",
              "per-expert");
  add_command(app, chosen, "fuse",
              "Writes all experts of a layer into one tensor, as Transformers 5 keeps them",
              "fused");
  add_command(app, chosen, "convert", "Writes a checkpoint in another spelling of equal content",
              "");
}

}  // namespace gantry::cli
