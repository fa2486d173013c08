#include "tools/quantize_plan.h"

#include <algorithm>
#include <optional>
#include <set>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/encoded_reader.h"
#include "loader/encodings/module_pattern.h"
#include "loader/expected_tensors.h"
#include "loader/gguf_export.h"
#include "loader/spelling.h"

namespace gantry::cli {
namespace {

// Patterns of one option, each of which has to match something.
class ModuleFilter {
 public:
  ModuleFilter(std::string_view option, const std::vector<std::string>& patterns)
      : option_(option), texts_(patterns), used_(patterns.size(), false) {
    constexpr std::string_view kRegex = "re:";
    for (const std::string& text : patterns) {
      compiled_.push_back(
          text.starts_with(kRegex)
              ? ModulePattern::regex(text.substr(kRegex.size()), ModulePattern::Anchor::kStart)
              : ModulePattern::wildcard(text));
    }
  }

  bool matches(std::string_view module) {
    bool any = false;
    for (size_t i = 0; i < compiled_.size(); ++i) {
      if (!compiled_[i].matches(module)) continue;
      used_[i] = true;
      any = true;
    }
    return any;
  }

  void check_all_used() const {
    for (size_t i = 0; i < used_.size(); ++i) {
      GANTRY_CHECK(used_[i], ErrorCode::kInvalidArgument, "{} '{}': matches no linear layer",
                   option_, texts_[i]);
    }
  }

 private:
  std::string_view option_;
  std::vector<std::string> texts_;
  std::vector<ModulePattern> compiled_;
  std::vector<bool> used_;
};

std::string module_of(const std::string& weight_name) {
  constexpr std::string_view kSuffix = ".weight";
  return weight_name.ends_with(kSuffix) ? weight_name.substr(0, weight_name.size() - kSuffix.size())
                                        : weight_name;
}

// The names of the new checkpoint: the source's own, or for GGUF those of the model's own family.
class TargetNames {
 public:
  TargetNames(const MoeModel& model, const GgufSource* gguf)
      : source_(&model.tensors().names()), family_(model.config().family) {
    if (gguf == nullptr) return;
    GANTRY_CHECK(!model.config().layers.empty(), ErrorCode::kUnsupported, "{}: has no MoE layer",
                 gguf->config_file.string());
    family_ = gguf->config.family;
    names_.emplace(*family_, gguf->prefix);
    spelling_.emplace(*family_, SpellingChoice::kOriginal, model.config().layers.front().gated());
    foreign_ = {source_, &model.config(), &*spelling_, &*names_,
                [architecture = gguf->architecture](const std::string& name) {
                  return from_gguf_name(architecture, name);
                }};
  }
  TargetNames(const TargetNames&) = delete;  // `foreign_` points into it
  TargetNames& operator=(const TargetNames&) = delete;

  [[nodiscard]] const FamilySpec& family() const { return *family_; }
  [[nodiscard]] std::string expert(const TensorRef& ref) const {
    return (names_ ? *names_ : *source_).format(ref);
  }
  // Of a tensor that is no routed expert's.
  [[nodiscard]] std::string other(const std::string& name) const {
    return names_ ? foreign_(name) : name;
  }
  [[nodiscard]] bool foreign() const { return names_.has_value(); }

 private:
  const NameMap* source_;
  const FamilySpec* family_;
  std::optional<NameMap> names_;
  std::optional<Spelling> spelling_;
  ForeignNames foreign_;
};

class Planner {
 public:
  Planner(const MoeModel& model, const QuantizeRequest& request, const GgufSource* gguf)
      : model_(model),
        names_(model, gguf),
        family_(names_.family()),
        include_("--include", request.include),
        ignore_("--ignore", request.ignore),
        config_text_(gguf == nullptr ? model.checkpoint().config_text() : gguf->config_text) {
    GANTRY_CHECK(gguf != nullptr || !is_gguf(model), ErrorCode::kInvalidArgument,
                 "{}: GGUF files need the model's config.json",
                 model.checkpoint().directory().string());
    plan_.format = find_export_format(request.format, family_.name, request.group_size);
    GANTRY_CHECK(plan_.format.quantized(), ErrorCode::kInvalidArgument,
                 "--format: expected a quantized format, found '{}'", request.format);
    plan_.format.desc_act = request.desc_act;
    GANTRY_CHECK(
        !request.desc_act || plan_.format.matrix.find(ExportRole::kGroupIndex) != nullptr,
        ErrorCode::kInvalidArgument,
        "--desc-act: {} has no g_idx to say which group a column is in; --act-order needs none",
        request.format);
    const auto declared =
        gguf == nullptr ? model.config().declared_dtype : gguf->config.declared_dtype;
    if (declared && is_plain_float(*declared)) plan_.plain_dtype = *declared;
  }

  QuantizePlan plan() {
    plan_others();
    for (const MoeLayerSpec& spec : model_.config().layers)
      plan_layer(spec);
    include_.check_all_used();
    ignore_.check_all_used();
    set_config();
    return std::move(plan_);
  }

 private:
  void add_tensor(std::string name, DType dtype, std::vector<int64_t> shape) {
    if (!written_.insert(name).second) return;  // of all experts
    TensorInfo info;
    info.name = std::move(name);
    info.dtype = dtype;
    info.shape = std::move(shape);
    plan_.tensors.push_back(std::move(info));
  }

  void need_memory(int64_t bytes) { plan_.job_bytes = std::max(plan_.job_bytes, bytes); }

  // ---- beside the experts --------------------------------------------------------------------

  std::string target_of(const std::string& name) {
    std::string target = names_.other(name);
    if (names_.foreign() && target.starts_with("blk.")) kept_names_.push_back(target);
    return target;
  }

  void plan_others() {
    OtherTensors other = find_other_tensors(model_.checkpoint(), model_.config(), model_.tensors());
    for (const CheckpointTensor* tensor : other.rest) {
      plan_.copies.push_back({target_of(tensor->info.name), tensor});
      add_tensor(plan_.copies.back().name, tensor->info.dtype, tensor->info.shape);
      plan_.source_bytes += tensor->info.num_bytes();
    }
    for (LinearModule& module : other.linear) {
      LinearPlan linear;
      linear.module = std::move(module);
      linear.module.name = module_of(target_of(linear.module.name + ".weight"));
      const std::string& name = linear.module.name;
      linear.quantized = !is_embedding(name) && include_.matches(name) && !ignore_.matches(name);
      linear.size = linear_size(model_.checkpoint(), linear.module);
      plan_.source_bytes += linear.module.bytes();
      if (linear.quantized) {
        check_fits(plan_.format, linear.size, name);
        GANTRY_CHECK(!plan_.format.stacked, ErrorCode::kUnsupported,
                     "{}: {} is written for experts only", name, plan_.format.name);
        for (const ExportTensor& tensor : plan_.format.matrix.tensors) {
          add_tensor(fmt::format("{}.{}", name, tensor.suffix), tensor.dtype,
                     export_shape(plan_.format.matrix, tensor, linear.size));
        }
        ++plan_.num_quantized;
      } else if (linear.copied()) {
        const TensorInfo& info = linear.module.tensors.at("weight")->info;
        add_tensor(name + ".weight", info.dtype, info.shape);
        if (!is_embedding(name)) plain_modules_.push_back(name);
      } else {
        add_tensor(name + ".weight", plan_.plain_dtype, {linear.size.out, linear.size.in});
        if (!is_embedding(name)) plain_modules_.push_back(name);
      }
      if (!linear.copied()) {
        need_memory(linear.module.bytes() + linear.size.out * linear.size.in * kBytesAWeight);
      }
      plan_.linear.push_back(std::move(linear));
    }
    if (!kept_names_.empty()) {
      log(LogLevel::kWarn,
          "{} tensors outside of MoE blocks keep llama.cpp's names ({} ...): what its converter "
          "does to them in this architecture is not known here",
          kept_names_.size(), kept_names_.front());
    }
  }

  // ---- routed experts ------------------------------------------------------------------------

  // The names of a layer's experts in the family's own spelling, by expert and part.
  [[nodiscard]] TensorRef ref_of(const MoeLayerSpec& spec, int expert, Part part,
                                 TensorKind kind) const {
    const Stacking stacking = plan_.format.stacked ? Stacking::kStacked3d : Stacking::kPerExpert;
    TensorRef ref;
    ref.layer = spec.layer;
    ref.expert = plan_.format.stacked ? -1 : expert;
    ref.kind = kind;
    ref.pattern = expert_pattern(family_, part, stacking);
    ref.part = family_.tensors[static_cast<size_t>(ref.pattern)].part;
    const TensorSource* source = model_.tensors().layer(spec.layer).any_source(expert, part);
    GANTRY_CHECK(source != nullptr, ErrorCode::kFormat, "layer {}, expert {}: no {}", spec.layer,
                 expert, to_string(part));
    ref.block = names_.foreign() ? 0 : source->ref.block;
    return respelled(plan_.format, family_, ref);
  }

  void plan_layer(const MoeLayerSpec& spec) {
    std::vector<std::string> left_out;
    for (int expert = 0; expert < spec.num_experts; ++expert) {
      ExpertPlan planned{.spec = &spec, .expert = expert, .matrices = {}};
      int64_t memory = 0;
      for (const Part part : kExpertParts) {
        if (part == Part::kW3 && !spec.gated()) continue;
        planned.matrices.push_back(plan_matrix(spec, expert, part, left_out));
        const MatrixSize size = part_size(part, spec);
        memory += size.out * size.in * kBytesAWeight;
      }
      need_memory(memory);
      plan_.experts.push_back(std::move(planned));
    }
    const auto total = static_cast<size_t>(spec.num_experts * (spec.gated() ? 3 : 2));
    if (!left_out.empty() && left_out.size() != total) {
      log(LogLevel::kWarn,
          "layer {}: {} of {} matrices of experts stay unquantized; engines with one scheme a "
          "layer will refuse it",
          spec.layer, left_out.size(), total);
    }
    plain_modules_.insert(plain_modules_.end(), left_out.begin(), left_out.end());
  }

  MatrixPlan plan_matrix(const MoeLayerSpec& spec, int expert, Part part,
                         std::vector<std::string>& left_out) {
    const MatrixSize size = part_size(part, spec);
    const LayerTensors& tensors = model_.tensors().layer(spec.layer);
    MatrixPlan planned;
    planned.part = part;
    TensorRef ref = ref_of(spec, expert, part, TensorKind::kWeight);
    const std::string weight = names_.expert(ref);
    const std::string module = module_of(weight);
    planned.quantized = !ignore_.matches(module);
    if (tensors.is_encoded(expert, part)) {
      for (const TensorSource* source : encoded_sources(tensors, expert, part))
        plan_.source_bytes += source->tensor->info.num_bytes() / shared_by(*source, spec);
    } else {
      const DType dtype =
          tensors.expert_source(expert, part, TensorKind::kWeight)->tensor->info.dtype;
      plan_.source_bytes += size.out * size.in * size_of(dtype);
    }
    if (planned.quantized) {
      check_fits(plan_.format, size, module);
      ++plan_.num_quantized;
      for (const ExportTensor& tensor : plan_.format.matrix.tensors)
        planned.names.push_back(add_export(spec, ref, tensor, size));
    } else {
      GANTRY_CHECK(!plan_.format.stacked, ErrorCode::kUnsupported,
                   "--ignore: {}: experts that share a tensor are quantized together", module);
      left_out.push_back(module);
      planned.names.push_back(weight);
      add_tensor(weight, plan_.plain_dtype, {size.out, size.in});
    }
    if (tensors.expert_source(expert, part, TensorKind::kBias) != nullptr)
      planned.bias_name = add_bias(spec, expert, part, size);
    return planned;
  }

  std::string add_export(const MoeLayerSpec& spec, TensorRef ref, const ExportTensor& tensor,
                         const MatrixSize& size) {
    ref.kind = tensor.suffix == "weight" ? TensorKind::kWeight : TensorKind::kEncoded;
    ref.suffix = tensor.suffix;
    if (ref.kind == TensorKind::kWeight) ref.suffix.clear();
    std::string name = names_.expert(ref);
    add_tensor(name, tensor.dtype,
               stacked(spec, ref, export_shape(plan_.format.matrix, tensor, size)));
    return name;
  }

  std::string add_bias(const MoeLayerSpec& spec, int expert, Part part, const MatrixSize& size) {
    const TensorRef ref = ref_of(spec, expert, part, TensorKind::kBias);
    std::string name = names_.expert(ref);
    add_tensor(name, plan_.plain_dtype, stacked(spec, ref, {size.out}));
    return name;
  }

  // The shape of all experts' tensors together, gate and up in one.
  std::vector<int64_t> stacked(const MoeLayerSpec& spec, const TensorRef& ref,
                               std::vector<int64_t> shape) {
    if (!plan_.format.stacked) return shape;
    if (ref.part == Part::kW13) {
      plan_.gate_up = family_.tensors[static_cast<size_t>(ref.pattern)].gate_up;
      shape[0] *= 2;
    }
    shape.insert(shape.begin(), spec.num_experts);
    return shape;
  }

  static int64_t shared_by(const TensorSource& source, const MoeLayerSpec& spec) {
    const int64_t parts = source.ref.part == Part::kW13 ? 2 : 1;
    return parts * (source.ref.expert >= 0 ? 1 : spec.num_experts);
  }

  // ---- config.json ---------------------------------------------------------------------------

  void set_config() {
    const Json quantization = plan_.format.config(plan_.format, plain_modules_);
    plan_.config_text = with_quantization(config_text_, quantization);
    for (const auto& [name, content] : quant_side_files(quantization))
      plan_.side_files.emplace_back(name, content.dump(2) + "\n");
  }

  // Of a job, for each weight: read (2 or 4), f32 (4), codes (1) and what is written of them (1 or,
  // where codes are transposed, 2).
  static constexpr int64_t kBytesAWeight = 11;

  const MoeModel& model_;
  const TargetNames names_;
  const FamilySpec& family_;
  ModuleFilter include_;
  ModuleFilter ignore_;
  const std::string& config_text_;
  std::vector<std::string> kept_names_;
  QuantizePlan plan_;
  std::set<std::string> written_;
  std::vector<std::string> plain_modules_;
};

}  // namespace

QuantizePlan plan_quantize(const MoeModel& model, const QuantizeRequest& request,
                           const GgufSource* gguf) {
  return Planner(model, request, gguf).plan();
}

}  // namespace gantry::cli
