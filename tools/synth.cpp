#include <CLI/CLI.hpp>
#include <array>
#include <cmath>
#include <filesystem>
#include <memory>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/expected_tensors.h"
#include "loader/moe_config.h"
#include "loader/safetensors_writer.h"
#include "loader/tensor_geometry.h"
#include "tools/commands.h"
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

// Normal numbers by table: 4096 equally likely quantiles. Good enough for weights, and fast enough
// that the disk is the limit.
class NormalTable {
 public:
  NormalTable() {
    for (size_t i = 0; i < values_.size(); ++i) {
      const double p = (static_cast<double>(i) + 0.5) / static_cast<double>(values_.size());
      values_[i] = static_cast<float>(quantile(p));
    }
  }
  [[nodiscard]] const std::array<float, 4096>& values() const noexcept { return values_; }

 private:
  // Bisection on the error function: run 4096 times at start.
  static double quantile(double p) {
    double low = -8.0;
    double high = 8.0;
    for (int i = 0; i < 60; ++i) {
      const double middle = 0.5 * (low + high);
      (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
    }
    return low;
  }
  std::array<float, 4096> values_{};
};

uint64_t splitmix64(uint64_t& state) {
  state += 0x9e3779b97f4a7c15u;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t hash_name(std::string_view name, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325u ^ seed;
  for (const char c : name)
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// The same bytes for the same name, seed and position, whatever the threads do.
void fill_chunk(const std::array<uint16_t, 4096>& table, uint64_t seed, std::span<uint16_t> out) {
  uint64_t state = seed;
  size_t i = 0;
  while (i < out.size()) {
    uint64_t bits = splitmix64(state);
    for (int k = 0; k < 5 && i < out.size(); ++k, bits >>= 12)
      out[i++] = table[bits & 0xfff];
  }
}

double scale_of(const TensorInfo& tensor, const TensorRef& ref, const FamilySpec& family) {
  if (ref.kind == TensorKind::kBias || ref.part == Part::kCorrectionBias) return 0.1;
  const TensorPattern& pattern = family.tensors[static_cast<size_t>(ref.pattern)];
  const size_t rank = tensor.shape.size();
  const int64_t fan_in =
      pattern.orientation == Orientation::kOutIn ? tensor.shape[rank - 1] : tensor.shape[rank - 2];
  return 1.0 / std::sqrt(static_cast<double>(fan_in));
}

void write_layer(const MoeLayerSpec& spec, const NameMap& names, Stacking stacking,
                 const std::filesystem::path& path, const SynthOptions& options,
                 ProgressMeter& progress, nlohmann::ordered_json& weight_map) {
  static const NormalTable normal;
  const FamilySpec& family = names.family();
  std::vector<TensorInfo> tensors;
  std::map<std::string, TensorRef> refs;
  for (const TensorRef& ref : expected_tensors(spec, family, stacking)) {
    TensorInfo info;
    info.name = names.format(ref);
    info.dtype = DType::kBF16;
    info.shape =
        expected_shapes(family.tensors[static_cast<size_t>(ref.pattern)], ref.kind, spec)[0];
    weight_map[info.name] = path.filename().string();
    refs[info.name] = ref;
    tensors.push_back(std::move(info));
  }
  SafetensorsWriter writer(path, tensors, {{"format", "pt"}});
  constexpr int64_t kChunk = int64_t{1} << 20;  // elements
  struct Task {
    const TensorInfo* tensor;
    int64_t begin;
  };
  std::vector<Task> tasks;
  for (const TensorInfo& tensor : writer.tensors()) {
    for (int64_t begin = 0; begin < tensor.num_elements(); begin += kChunk) {
      tasks.push_back({&tensor, begin});
    }
  }
  parallel_for(options.common.make_threads(), static_cast<int64_t>(tasks.size()), [&](int64_t t) {
    const auto& [tensor, begin] = tasks[static_cast<size_t>(t)];
    const double scale = scale_of(*tensor, refs.at(tensor->name), family);
    std::array<uint16_t, 4096> table{};
    for (size_t i = 0; i < table.size(); ++i) {
      table[i] = f32_to_bf16(static_cast<float>(normal.values()[i] * scale));
    }
    std::vector<uint16_t> data(
        static_cast<size_t>(std::min(kChunk, tensor->num_elements() - begin)));
    fill_chunk(table, hash_name(tensor->name, options.seed) + static_cast<uint64_t>(begin), data);
    writer.write(tensor->name, begin * 2, std::as_bytes(std::span(data)));
    progress.add(static_cast<int64_t>(data.size()) * 2);
  });
  writer.finish();
}

int run_synth(const SynthOptions& options) {
  const Output output(options.common);
  GANTRY_CHECK(options.format == "bf16", ErrorCode::kInvalidArgument,
               "--format: only bf16 can be written so far, found '{}'", options.format);
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
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  GANTRY_CHECK(!error, ErrorCode::kIo, "{}: cannot create the directory: {}", directory.string(),
               error.message());

  nlohmann::ordered_json config_json = shape->config;
  resize(config_json, options.layers, options.experts);
  const std::string config_text = config_json.dump(2) + "\n";
  const MoeModelConfig config = read_moe_config(config_text, "config.json");
  const NameMap names(*config.family, std::string(shape->prefix));
  const Stacking stacking = shape->stacked ? Stacking::kStacked3d : usual_stacking(*config.family);

  int64_t total = 0;
  for (const MoeLayerSpec& spec : config.layers) {
    for (const TensorRef& ref : expected_tensors(spec, *config.family, stacking)) {
      const auto sizes = expected_shapes(config.family->tensors[static_cast<size_t>(ref.pattern)],
                                         ref.kind, spec)[0];
      int64_t elements = 1;
      for (const int64_t size : sizes)
        elements *= size;
      total += elements * 2;
    }
  }
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  {
    ProgressMeter progress("synth", total, options.common);
    for (size_t i = 0; i < config.layers.size(); ++i) {
      const std::string file =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, config.layers.size());
      write_layer(config.layers[i], names, stacking, directory / file, options, progress,
                  weight_map);
    }
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", total}}},
                                        {"weight_map", weight_map}};
  write_text_file(directory / "model.safetensors.index.json", index.dump(2) + "\n");
  // Last: a directory with a config is a whole checkpoint.
  write_text_file(directory / "config.json", config_text);
  output.result(fmt::format("{}: {} MoE layer(s) of {}, {}", directory.string(),
                            config.layers.size(), shape->name, human_bytes(total)));
  output.event("result", {{"directory", directory.string()},
                          {"shape", shape->name},
                          {"layers", config.layers.size()},
                          {"bytes", total}});
  return kExitOk;
}

}  // namespace

void add_synth_command(CLI::App& app, std::function<int()>& chosen) {
  auto options = std::make_shared<SynthOptions>();
  CLI::App* command =
      app.add_subcommand("synth", "Writes random MoE layers with a real model's shape and names");
  command->add_option("OUT", options->directory, "directory to write")->required();
  command->add_option("--shape", options->shape, "model whose shape to take")
      ->capture_default_str();
  command->add_option("--layers", options->layers, "number of MoE layers")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--format", options->format, "weight format")->capture_default_str();
  command->add_option("--experts", options->experts, "experts a layer (0: the model's own)")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "seed of the random weights")->capture_default_str();
  add_common_options(*command, options->common);
  command->callback([options, &chosen] { chosen = [options] { return run_synth(*options); }; });
}

}  // namespace gantry::cli
