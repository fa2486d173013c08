#include "tools/synth_plan.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"
#include "loader/moe_config.h"
#include "loader/safetensors_writer.h"
#include "loader/tensor_geometry.h"
#include "tools/synth_formats.h"

namespace gantry::cli {
namespace {

using SharedContent = std::shared_ptr<const Content>;

// The tensors of one layer. Matrices of the same size share their tables.
class LayerPlanner {
 public:
  LayerPlanner(const MoeLayerSpec& spec, const NameMap& names, const ExportFormat& format)
      : spec_(spec), names_(names), format_(format) {}

  std::vector<SynthTensor> plan(Stacking stacking) {
    for (const TensorRef& ref : expected_tensors(spec_, names_.family(), stacking)) {
      const bool quantized = format_.quantized() && is_expert_part(ref.part);
      const TensorRef spelled = quantized ? respelled(format_, names_.family(), ref) : ref;
      if (quantized && ref.kind == TensorKind::kWeight) {
        add_matrix(spelled);
      } else {
        add_plain(spelled);
      }
    }
    return std::move(tensors_);
  }

 private:
  [[nodiscard]] const TensorPattern& pattern_of(const TensorRef& ref) const {
    return names_.family().tensors[static_cast<size_t>(ref.pattern)];
  }

  void add(const TensorRef& ref, DType dtype, std::vector<int64_t> shape, SharedContent content) {
    SynthTensor tensor;
    tensor.info.name = names_.format(ref);
    tensor.info.dtype = dtype;
    tensor.info.shape = std::move(shape);
    tensor.content = std::move(content);
    tensors_.push_back(std::move(tensor));
  }

  void add_matrix(TensorRef ref) {
    const MatrixSize size = part_size(ref.part, spec_);
    auto [known, is_new] = matrices_.try_emplace({size.out, size.in});
    if (is_new) {
      check_fits(format_, size, to_string(ref.part));
      known->second = synth_tensors(format_, size);
    }
    for (const MatrixTensor& tensor : known->second) {
      ref.kind = tensor.suffix == "weight" ? TensorKind::kWeight : TensorKind::kEncoded;
      ref.suffix = tensor.suffix;
      std::vector<int64_t> shape = tensor.shape;
      if (format_.stacked) shape.insert(shape.begin(), spec_.num_experts);
      add(ref, tensor.dtype, std::move(shape), tensor.content);
    }
  }

  void add_plain(const TensorRef& ref) {
    std::vector<int64_t> shape = expected_shapes(pattern_of(ref), ref.kind, spec_)[0];
    const double deviation = plain_deviation(ref, shape);
    SharedContent& content = plain_[deviation];
    if (content == nullptr) content = std::make_shared<const Content>(bf16_normals(deviation));
    add(ref, DType::kBF16, std::move(shape), content);
  }

  [[nodiscard]] double plain_deviation(const TensorRef& ref,
                                       const std::vector<int64_t>& shape) const {
    if (ref.kind == TensorKind::kBias || ref.part == Part::kCorrectionBias) return 0.1;
    const size_t rank = shape.size();
    const bool out_in = pattern_of(ref).orientation == Orientation::kOutIn;
    return 1.0 / std::sqrt(static_cast<double>(shape[out_in ? rank - 1 : rank - 2]));
  }

  const MoeLayerSpec& spec_;
  const NameMap& names_;
  const ExportFormat& format_;
  std::vector<SynthTensor> tensors_;
  std::map<std::pair<int64_t, int64_t>, std::vector<MatrixTensor>> matrices_;  // by size
  std::map<double, SharedContent> plain_;                                      // by deviation
};

// The linear layers beside the experts: exporters list those that they leave as they are.
std::vector<std::string> plain_modules(const MoeModelConfig& config, const NameMap& names) {
  constexpr std::string_view kSuffix = ".weight";
  std::vector<std::string> modules;
  for (const MoeLayerSpec& spec : config.layers) {
    for (const TensorRef& ref :
         expected_tensors(spec, names.family(), usual_stacking(names.family()))) {
      if (is_expert_part(ref.part) || ref.kind != TensorKind::kWeight) continue;
      std::string name = names.format(ref);
      if (!name.ends_with(kSuffix)) continue;  // a parameter
      name.resize(name.size() - kSuffix.size());
      modules.push_back(std::move(name));
    }
  }
  return modules;
}

void write_layer(const std::vector<SynthTensor>& layer, const std::filesystem::path& path,
                 uint64_t seed, const Threads& threads,
                 const std::function<void(int64_t)>& progress) {
  std::vector<TensorInfo> infos;
  infos.reserve(layer.size());
  for (const SynthTensor& tensor : layer)
    infos.push_back(tensor.info);
  SafetensorsWriter writer(path, infos, {{"format", "pt"}});
  constexpr int64_t kChunk = int64_t{1} << 20;  // elements of the table
  struct Task {
    const SynthTensor* tensor;
    int64_t begin;
    int64_t bytes;
  };
  std::vector<Task> tasks;
  for (const SynthTensor& tensor : layer) {
    const int64_t element = tensor.content->element_bytes();
    const int64_t total = tensor.info.num_elements() * size_of(tensor.info.dtype);
    for (int64_t begin = 0; begin * element < total; begin += kChunk)
      tasks.push_back({&tensor, begin, std::min(kChunk * element, total - begin * element)});
  }
  parallel_for(threads, static_cast<int64_t>(tasks.size()), [&](int64_t t) {
    const auto& [tensor, begin, bytes] = tasks[static_cast<size_t>(t)];
    std::vector<std::byte> data(static_cast<size_t>(bytes));
    tensor->content->fill(hash_name(tensor->info.name, seed), begin, data);
    writer.write(tensor->info.name, begin * tensor->content->element_bytes(), data);
    progress(bytes);
  });
  writer.finish();
}

}  // namespace

SynthPlan plan_synth(const SynthShape& shape, const nlohmann::ordered_json& config_json,
                     std::string_view format_name) {
  SynthPlan plan;
  const MoeModelConfig config = read_moe_config(config_json.dump(), "config.json");
  const ExportFormat format = find_export_format(format_name, config.family->name);
  const NameMap names(*config.family, std::string(shape.prefix));
  nlohmann::ordered_json written = config_json;
  if (format.config != nullptr) {
    const auto quantization = format.config(format, plain_modules(config, names));
    for (const auto& [name, content] : quant_side_files(quantization))
      plan.side_files.emplace_back(name, content.dump(2) + "\n");
    written["quantization_config"] = quantization;
  }
  plan.config_text = written.dump(2) + "\n";

  Stacking stacking = Stacking::kPerExpert;
  if (format.stacked || (!format.quantized() && shape.stacked)) {
    stacking = Stacking::kStacked3d;
  } else if (!format.quantized()) {
    stacking = usual_stacking(*config.family);
  }
  for (const MoeLayerSpec& spec : config.layers) {
    plan.layers.push_back(LayerPlanner(spec, names, format).plan(stacking));
    for (const SynthTensor& tensor : plan.layers.back())
      plan.total_bytes += tensor.info.num_elements() * size_of(tensor.info.dtype);
  }
  return plan;
}

void write_synth(const SynthPlan& plan, const std::filesystem::path& directory, uint64_t seed,
                 const Threads& threads, const std::function<void(int64_t)>& progress) {
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const std::string file =
        fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, plan.layers.size());
    write_layer(plan.layers[i], directory / file, seed, threads, progress);
    for (const SynthTensor& tensor : plan.layers[i])
      weight_map[tensor.info.name] = file;
  }
  const nlohmann::ordered_json index = {{"metadata", {{"total_size", plan.total_bytes}}},
                                        {"weight_map", weight_map}};
  write_text_file(directory / "model.safetensors.index.json", index.dump(2) + "\n");
  for (const auto& [name, text] : plan.side_files)
    write_text_file(directory / name, text);
  write_text_file(directory / "config.json", plan.config_text);
}

}  // namespace gantry::cli
