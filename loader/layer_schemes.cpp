#include "loader/layer_schemes.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "kernels/base/check.h"
#include "loader/encodings/companion_names.h"
#include "loader/expected_tensors.h"
#include "loader/input_scales.h"

namespace gantry {
namespace {

// How many matrices something holds for, and the first of them.
struct Tally {
  int64_t count = 0;
  std::string first;

  void add(const std::string& module) {
    if (count++ == 0) first = module;
  }
};

class SchemeResolver {
 public:
  SchemeResolver(const Checkpoint& checkpoint, const MoeModelConfig& config, LoadReport& report)
      : checkpoint_(checkpoint), config_(config), report_(report) {}

  void resolve(const MoeLayerSpec& spec, LayerTensors& layer) {
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !spec.gated()) continue;
      Tally problems;
      for (int e = 0; e < spec.num_experts; ++e)
        resolve_matrix(layer, e, part, layer.experts[static_cast<size_t>(e)], problems);
      check_alike(spec, layer, part);
      Tally shared_problems;
      if (spec.shared.intermediate_size > 0) {
        resolve_matrix(layer, -1, shared_part(part), layer.shared, shared_problems);
      }
    }
  }

  void add_notes() {
    if (quantized_though_left_out_.count > 0) {
      report_.note(fmt::format(
          "{} quantized matrices ({} first) are among those that {} leaves out: they are read all "
          "the same",
          quantized_though_left_out_.count, quantized_though_left_out_.first,
          config_.quant->source()));
    }
    if (plain_.count > 0) {
      report_.note(fmt::format(
          "{} matrices ({} first) are not quantized although {} says so: they are read as they are",
          plain_.count, plain_.first, config_.quant->source()));
    }
  }

 private:
  void add_finding(FindingKind kind, const TensorSource& source, int expert, Part part,
                   const std::string& message) {
    const std::string file = checkpoint_.file_name(*source.tensor);
    report_.add({kind, file.empty() ? message : fmt::format("{} ({})", message, file), source.name,
                 file, source.ref.layer, expert, std::string(to_string(part))});
  }

  void resolve_matrix(const LayerTensors& layer, int expert, Part part,
                      LayerTensors::Expert& matrices, Tally& problems) {
    const TensorSource* source = layer.any_source(expert, part);
    if (source == nullptr) return;
    const std::string module = module_name(source->name, source->ref);
    if (!layer.is_encoded(expert, part)) {
      if (config_.quant->leaves_out(module)) return;
      if (!checkpoint_.names_only()) {
        plain_.add(module);
        return;
      }
      // Names alone do not tell a weight of floats from one of codes: the config does.
      try {
        const QuantScheme* scheme = config_.quant->scheme_for(module);
        if (scheme != nullptr) check_names(layer, expert, part, *scheme);
      } catch (const Error&) {  // said of matrices that are quantized by their names
      }
      return;
    }
    try {
      const QuantScheme* scheme = config_.quant->scheme_for(module);
      GANTRY_CHECK(scheme != nullptr, ErrorCode::kFormat,
                   "{}: quantized, but {} says nothing about module {}", source->name,
                   config_.quant->source(), module);
      matrices.schemes[expert_part_index(part)] = scheme;
      for (const QuantConfig& other : config_.other_quant)
        compare(*scheme, other, module);
    } catch (const Error& error) {
      // One finding a layer and projection: what is wrong with one expert is with most.
      problems.add(module);
      if (problems.count > 1) return;
      add_finding(
          FindingKind::kEncoding, *source, expert, part,
          fmt::format("{} (layer {}{}, {})", error.what(), source->ref.layer,
                      expert < 0 ? "" : fmt::format(", expert {}", expert), to_string(part)));
      return;
    }
    if (config_.quant->leaves_out(module)) quantized_though_left_out_.add(module);
    if (checkpoint_.names_only()) {
      check_names(layer, expert, part, *matrices.schemes[expert_part_index(part)]);
    }
  }

  // What the scheme calls for, by names alone. With dtypes and shapes the load knows better.
  void check_names(const LayerTensors& layer, int expert, Part part, const QuantScheme& scheme) {
    const LayerTensors::Expert& matrices = layer.matrices(expert);
    const size_t index = expert_part_index(part);
    const std::vector<std::string> missing = missing_names(scheme, suffixes_of(matrices, index));
    if (missing.empty()) return;
    const TensorSource& any = *layer.any_source(expert, part);
    incomplete_.insert({any.ref.layer, expert, index});
    if (any.ref.expert < 0 && expert > 0) return;  // one tensor of all experts is named once
    for (const std::string& suffix : missing) {
      add_finding(
          is_input_scale(suffix) ? FindingKind::kInputScale : FindingKind::kMissing, any, expert,
          part,
          fmt::format("{}: expected a {} beside it, found none (layer {}{}, {}: {})", any.name,
                      suffix, any.ref.layer, expert < 0 ? "" : fmt::format(", expert {}", expert),
                      to_string(part), describe(scheme)));
    }
  }

  static std::set<std::string> suffixes_of(const LayerTensors::Expert& expert, size_t index) {
    std::set<std::string> suffixes;
    for (const auto& [suffix, source] : expert.encoded[index])
      suffixes.insert(suffix);
    if (expert.parts[index][0] != nullptr) suffixes.insert("weight");
    return suffixes;
  }

  void compare(const QuantScheme& scheme, const QuantConfig& other, const std::string& module) {
    const QuantScheme* second = other.scheme_for(module);
    GANTRY_CHECK(second == nullptr || reads_weights_alike(scheme, *second), ErrorCode::kFormat,
                 "module {}: {} says {} and {} says {}: these give different weights", module,
                 config_.quant->source(), describe(scheme), other.source(), describe(*second));
  }

  // A quantized matrix has the tensors that most experts of the same scheme have. Experts that are
  // not quantized at all may stand among them. This finds what a decoder would do without (a zero
  // point, say), and is all that names alone can tell.
  void check_alike(const MoeLayerSpec& spec, const LayerTensors& layer, Part part) {
    using Suffixes = std::set<std::string>;
    const size_t index = expert_part_index(part);
    std::map<const QuantScheme*, std::map<Suffixes, int>> votes;
    std::vector<Suffixes> found(static_cast<size_t>(spec.num_experts));
    for (int e = 0; e < spec.num_experts; ++e) {
      const LayerTensors::Expert& expert = layer.experts[static_cast<size_t>(e)];
      if (expert.encoded[index].empty()) continue;
      Suffixes& suffixes = found[static_cast<size_t>(e)];
      suffixes = suffixes_of(expert, index);
      ++votes[expert.schemes[index]][suffixes];
    }
    for (int e = 0; e < spec.num_experts; ++e) {
      const LayerTensors::Expert& expert = layer.experts[static_cast<size_t>(e)];
      const Suffixes& suffixes = found[static_cast<size_t>(e)];
      if (suffixes.empty() || incomplete_.contains({spec.layer, e, index})) continue;
      const auto& same_scheme = votes.at(expert.schemes[index]);
      const auto usual =
          std::max_element(same_scheme.begin(), same_scheme.end(),
                           [](const auto& a, const auto& b) { return a.second < b.second; });
      if (suffixes == usual->first) continue;
      const TensorSource& any = *expert.encoded[index].begin()->second;
      std::vector<std::string> differing;
      std::set_symmetric_difference(suffixes.begin(), suffixes.end(), usual->first.begin(),
                                    usual->first.end(), std::back_inserter(differing));
      // Weights can be computed without these: an expert that calibration never reached has none.
      const bool input_only = std::all_of(differing.begin(), differing.end(), is_input_scale);
      add_finding(input_only ? FindingKind::kInputScale : FindingKind::kMissing, any,
                  any.ref.expert, part,
                  fmt::format("layer {}, expert {}, {}: expected the tensors {} like the layer's "
                              "other experts, found {}",
                              spec.layer, e, to_string(part), fmt::join(usual->first, ", "),
                              fmt::join(suffixes, ", ")));
    }
  }

  const Checkpoint& checkpoint_;
  const MoeModelConfig& config_;
  LoadReport& report_;
  Tally quantized_though_left_out_;
  Tally plain_;
  std::set<std::tuple<int, int, size_t>> incomplete_;  // layer, expert, part: named already
};

}  // namespace

void resolve_schemes(const Checkpoint& checkpoint, const MoeModelConfig& config,
                     std::map<int, LayerTensors>& layers, LoadReport& report) {
  if (!config.quant) return;
  SchemeResolver resolver(checkpoint, config, report);
  for (const MoeLayerSpec& spec : config.layers)
    resolver.resolve(spec, layers.at(spec.layer));
  resolver.add_notes();
}

}  // namespace gantry
