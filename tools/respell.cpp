// gantry fuse, unfuse and convert: one checkpoint, the same content, other tensors and names; also
// between safetensors and GGUF where the bits are equal.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>

#include "kernels/base/check.h"
#include "loader/carried_files.h"
#include "loader/gguf_export.h"
#include "loader/relayout.h"
#include "runtime/moe_model.h"
#include "tools/commands.h"
#include "tools/export_formats.h"
#include "tools/gguf_source.h"
#include "tools/linear_modules.h"
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

/// What a conversion needs besides the source.
struct Conversion {
  RelayoutTarget target;
  std::optional<GgufSource> gguf;
};

/// GGUF's metadata say less than a config.json: it is given, or lies beside the file.
Conversion from_gguf(const MoeModel& model, const RespellOptions& options, SpellingChoice choice) {
  Conversion result;
  const GgufSource& source =
      result.gguf.emplace(read_gguf_source(model, options.input, options.config));
  result.target = {.choice = choice,
                   .family = source.config.family,
                   .prefix = source.prefix,
                   .other_name = [architecture = source.architecture](const std::string& name) {
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

// The linear layers of a result that are not quantized.
ModuleNames plain_modules(const RelayoutPlan& plan) {
  constexpr std::string_view kWeight = ".weight";
  ModuleNames modules;
  for (const TensorInfo& tensor : plan.tensors) {
    if (tensor.shape.size() == 2 && is_plain_float(tensor.dtype) &&
        tensor.name.ends_with(kWeight) && !is_embedding(tensor.name)) {
      modules.push_back(tensor.name.substr(0, tensor.name.size() - kWeight.size()));
    }
  }
  return modules;
}

/// The text of config.json where the source's does not say how the result is quantized.
std::optional<std::string> new_config(const MoeModel& model, const RelayoutPlan& plan,
                                      const Conversion& conversion, const std::string& input) {
  const std::optional<GgufSource>& gguf = conversion.gguf;
  if (!plan.mxfp4 || plan.mxfp4 == Mxfp4Layout::kGgml) {
    GANTRY_CHECK(!gguf || !gguf->config.quant, ErrorCode::kInvalidArgument,
                 "{}: has a quantization config, the tensors of {} are not quantized",
                 gguf->config_file.string(), input);
    return std::nullopt;
  }
  const FamilySpec& family = gguf ? *gguf->config.family : *model.config().family;
  const ExportFormat format =
      find_export_format(plan.mxfp4 == Mxfp4Layout::kBlocks ? "mxfp4" : "mxfp4-a16", family.name);
  const Json quantization = format.config(format, plain_modules(plan));
  if (!gguf) return with_quantization(model.checkpoint().config_text(), quantization);
  // Back in the layout that the config speaks of, it stays as it is.
  const Json stated = Json::parse(gguf->config_text).value("quantization_config", Json::object());
  if (stated.is_object() && stated.value("quant_method", "") == quantization.at("quant_method"))
    return std::nullopt;
  return with_quantization(gguf->config_text, quantization);
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
  const std::optional<std::string> config = new_config(model, plan, conversion, options.input);
  for (const std::string& note : plan.notes)
    output.text(fmt::format("note: {}", note));
  if (config)
    output.text(
        "note: config.json is written anew: the experts' layout has another quantization_config");
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
      conversion.gguf || config ? std::set<std::string>{"config.json"} : std::set<std::string>{};
  if (!alone) carry_files(checkpoint.directory(), writer, anew);
  if (config) {
    writer.write_text("config.json", *config);
  } else if (conversion.gguf) {
    writer.copy_file(conversion.gguf->config_file, "config.json");
  }
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
