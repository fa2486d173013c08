#include "runtime/model_diff.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"
#include "loader/matrix_reader.h"
#include "runtime/undo_smoothing.h"

namespace gantry {
namespace {

constexpr int64_t kSampleSize = 2048;
constexpr double kLikeness = 0.5;  // least |correlation| of samples of one matrix

// The same elements of every matrix of a size: evenly spread, not along one row or column.
std::vector<float> sample(const std::vector<float>& matrix) {
  const auto size = static_cast<int64_t>(matrix.size());
  if (size <= kSampleSize) return matrix;
  std::vector<float> values(kSampleSize);
  for (int64_t i = 0; i < kSampleSize; ++i) {
    // Steps of the golden ratio: no period of rows, columns or groups lines up with them.
    const double turn = std::fmod(static_cast<double>(i) * 0.6180339887498949, 1.0);
    values[static_cast<size_t>(i)] = matrix[static_cast<size_t>(turn * static_cast<double>(size))];
  }
  return values;
}

class LayerDiffer {
 public:
  LayerDiffer(MoeModel& a, MoeModel& b, int layer, const DiffSettings& settings)
      : a_(a),
        b_(b),
        reader_a_(a.checkpoint(), a.config(), a.tensors()),
        reader_b_(b.checkpoint(), b.config(), b.tensors()),
        spec_(*a.config().find_layer(layer)),
        settings_(settings) {
    result_.layer = layer;
  }

  LayerDifference run() {
    list_matrices();
    if (settings_.smoothed) norm_ratio_ = norm_ratio(a_, b_, spec_);
    samples_a_.resize(result_.matrices.size());
    samples_b_.resize(result_.matrices.size());
    parallel_for(settings_.threads, static_cast<int64_t>(result_.matrices.size()),
                 [&](int64_t i) { compare_matrix(static_cast<size_t>(i)); });
    find_origins();
    compare_singles();
    if (settings_.num_tokens > 0) compare_outputs();
    return std::move(result_);
  }

 private:
  void list_matrices() {
    const auto add = [&](int expert, Part part) {
      const std::string name_a = reader_a_.name(spec_.layer, expert, part);
      const std::string name_b = reader_b_.name(spec_.layer, expert, part);
      if (name_a.empty() && name_b.empty()) return;  // no gate
      result_.matrices.push_back({spec_.layer, expert, part, name_a, name_b, {}, {}, false});
    };
    for (int e = 0; e < spec_.num_experts; ++e) {
      for (const Part part : kExpertParts)
        add(e, part);
    }
    num_routed_ = result_.matrices.size();
    if (spec_.shared.intermediate_size == 0) return;
    for (const Part part : kExpertParts)
      add(-1, shared_part(part));
  }

  void compare_matrix(size_t index) {
    MatrixDifference& difference = result_.matrices[index];
    const auto& [layer, expert, part, name_a, name_b, weight, bias, too_large] = difference;
    const std::vector<float> a = reader_a_.read(layer, expert, part);
    std::vector<float> b = reader_b_.read(layer, expert, part);
    if (settings_.smoothed && expert >= 0) undo_smoothing(a, part, norm_ratio_, b);
    difference.weight.add(a, b);
    difference.too_large = settings_.too_large(difference.weight);
    if (expert >= 0) {
      samples_a_[index] = sample(a);
      if (difference.too_large) samples_b_[index] = sample(b);
    }
    const std::vector<float> bias_a = reader_a_.read_bias(layer, expert, part);
    const std::vector<float> bias_b = reader_b_.read_bias(layer, expert, part);
    if (bias_a.empty() && bias_b.empty()) return;
    GANTRY_CHECK(bias_a.size() == bias_b.size(), ErrorCode::kFormat,
                 "layer {}, expert {}, {}: a bias of {} elements in A and of {} in B", layer,
                 expert, to_string(part), bias_a.size(), bias_b.size());
    difference.bias.emplace().add(bias_a, bias_b);
    difference.too_large = difference.too_large || settings_.too_large(*difference.bias);
  }

  void find_origins() {
    for (size_t i = 0; i < num_routed_; ++i) {
      const MatrixDifference& matrix = result_.matrices[i];
      if (samples_b_[i].empty() || !settings_.too_large(matrix.weight)) continue;
      MatrixOrigin origin;
      origin.layer = spec_.layer;
      origin.expert = matrix.expert;
      origin.part = matrix.part;
      double best = kLikeness;
      for (size_t j = 0; j < num_routed_; ++j) {
        if (samples_a_[j].size() != samples_b_[i].size()) continue;
        if (size_of_part(result_.matrices[j].part) != size_of_part(matrix.part)) continue;
        Difference likeness;
        likeness.add(samples_a_[j], samples_b_[i]);
        const double correlation = std::abs(likeness.cosine());
        if (!(correlation > best)) continue;
        best = correlation;
        origin.found = true;
        origin.from_expert = result_.matrices[j].expert;
        origin.from_part = result_.matrices[j].part;
      }
      if (origin.found) {
        origin.weight.add(reader_a_.read(spec_.layer, origin.from_expert, origin.from_part),
                          reader_b_.read(spec_.layer, origin.expert, origin.part));
      }
      result_.origins.push_back(origin);
    }
  }

  [[nodiscard]] std::pair<int64_t, int64_t> size_of_part(Part part) const {
    const MatrixSize size = part_size(part, spec_);
    return {size.out, size.in};
  }

  // Router, biases, norms: what belongs to the layer as a whole.
  void compare_singles() {
    const LayerTensors& tensors_a = a_.tensors().layer(spec_.layer);
    const LayerTensors& tensors_b = b_.tensors().layer(spec_.layer);
    for (const auto& [key, source_a] : tensors_a.singles) {
      const auto& [part, kind] = key;
      if (is_shared_part(part) || part == Part::kHashTable || part == Part::kOther) continue;
      const TensorSource* source_b = tensors_b.single(part, kind);
      if (source_b == nullptr) continue;  // what both need is there: neither has findings
      TensorDifference difference{source_a->name, source_b->name, spec_.layer, {}, false};
      difference.values.add(reader_a_.read_single(spec_.layer, part, kind),
                            reader_b_.read_single(spec_.layer, part, kind));
      difference.too_large = settings_.too_large(difference.values);
      result_.tensors.push_back(difference);
    }
  }

  [[nodiscard]] std::vector<float> hidden_states() const {
    const auto given = settings_.hidden_states.find(spec_.layer);
    if (given != settings_.hidden_states.end()) return given->second;
    std::mt19937_64 generator(settings_.seed + static_cast<uint64_t>(spec_.layer));
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(settings_.num_tokens * spec_.hidden_size));
    for (float& value : values)
      value = normal(generator);
    return values;
  }

  void compare_outputs() {
    const std::vector<float> x = hidden_states();
    const int64_t num_tokens = static_cast<int64_t>(x.size()) / spec_.hidden_size;
    std::vector<int32_t> ids = settings_.token_ids;
    if (spec_.hash_table && static_cast<int64_t>(ids.size()) != num_tokens) {
      ids.resize(static_cast<size_t>(num_tokens));
      for (size_t t = 0; t < ids.size(); ++t)
        ids[t] = static_cast<int32_t>(static_cast<int64_t>(t) % spec_.vocab_size);
    }
    LayerBatch batch{.hidden_states = x};
    if (spec_.hash_table) batch.token_ids = ids;
    FusedMoeOptions options;
    options.activations = ActivationDType::kF32;
    options.threads = settings_.threads;
    LoadOptions load;
    load.threads = settings_.threads;
    const auto run = [&](MoeModel& model) {
      return run_layer_on_ranks(model, spec_.layer, {}, Placement::kLinear, load, options,
                                &batch)[0]
          .out;
    };
    const std::vector<float> out_a = run(a_);
    const std::vector<float> out_b = run(b_);
    if (out_a.size() != x.size() || out_b.size() != x.size()) return;  // findings of the load
    OutputDifference output{spec_.layer, num_tokens, {}, false};
    output.output.add(out_a, out_b);
    output.too_large = !(output.output.relative() <= settings_.max_output_relative);
    result_.output = output;
  }

  MoeModel& a_;
  MoeModel& b_;
  MatrixReader reader_a_;
  MatrixReader reader_b_;
  const MoeLayerSpec& spec_;
  const DiffSettings& settings_;
  LayerDifference result_;
  size_t num_routed_ = 0;
  std::vector<float> norm_ratio_;  // [H] of B to A, with settings.smoothed
  std::vector<std::vector<float>> samples_a_;
  std::vector<std::vector<float>> samples_b_;
};

}  // namespace

Difference LayerDifference::total(Part part) const {
  Difference sum;
  for (const MatrixDifference& matrix : matrices) {
    if (matrix.part == part) sum += matrix.weight;
  }
  return sum;
}

int64_t LayerDifference::num_too_large() const noexcept {
  const auto large = [](const auto& difference) { return difference.too_large; };
  return std::count_if(matrices.begin(), matrices.end(), large) +
         std::count_if(tensors.begin(), tensors.end(), large) +
         (output && output->too_large ? 1 : 0);
}

void require_comparable(const MoeModel& a, const MoeModel& b) {
  const auto layers_of = [](const MoeModel& model) {
    std::vector<int> layers;
    for (const MoeLayerSpec& spec : model.config().layers)
      layers.push_back(spec.layer);
    return layers;
  };
  GANTRY_CHECK(layers_of(a) == layers_of(b), ErrorCode::kFormat,
               "these are not of one model: A has MoE layers [{}], B [{}]",
               fmt::join(layers_of(a), ", "), fmt::join(layers_of(b), ", "));
  for (const MoeLayerSpec& spec : a.config().layers) {
    const MoeLayerSpec& other = *b.config().find_layer(spec.layer);
    const auto check = [&](std::string_view what, int64_t in_a, int64_t in_b) {
      GANTRY_CHECK(in_a == in_b, ErrorCode::kFormat,
                   "these are not of one model: layer {} has {} {} in A and {} in B", spec.layer,
                   what, in_a, in_b);
    };
    check("experts", spec.num_experts, other.num_experts);
    check("hidden size", spec.expert_hidden_size, other.expert_hidden_size);
    check("intermediate size", spec.intermediate_size, other.intermediate_size);
    check("a shared intermediate size of", spec.shared.intermediate_size,
          other.shared.intermediate_size);
  }
}

LayerDifference diff_layer(MoeModel& a, MoeModel& b, int layer, const DiffSettings& settings) {
  return LayerDiffer(a, b, layer, settings).run();
}

}  // namespace gantry
