#include "loader/input_scales.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/tensor_geometry.h"

namespace gantry {
namespace {

constexpr float kInitial = 1.0F;
constexpr float kFarFromOthers = 16.0F;

// The values that are read: a zero point of inputs has none that is suspicious.
bool has_values(std::string_view suffix) {
  return suffix == "input_scale" || suffix == "input_global_scale";
}

// Of the projection's scales that calibration did set; 0 if there is none.
float median_of_others(std::span<const InputScale> scales, Part part) {
  std::vector<float> values;
  for (const InputScale& scale : scales) {
    if (scale.part == part && scale.value > 0.0F && std::isfinite(scale.value) &&
        scale.value != kInitial) {
      values.push_back(scale.value);
    }
  }
  if (values.empty()) return 0.0F;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string problem_of(const InputScale& scale, std::span<const InputScale> all) {
  if (!std::isfinite(scale.value) || scale.value <= 0.0F) {
    return fmt::format("expected a positive scale, found {}", scale.value);
  }
  if (scale.value != kInitial) return "";
  const float median = median_of_others(all, scale.part);
  if (median == 0.0F) return "";
  if (median <= kFarFromOthers && median >= 1.0F / kFarFromOthers) return "";
  return fmt::format(
      "expected a calibrated scale (the other experts' median is {}), found 1, which exporters "
      "begin with",
      median);
}

// Tensors with input scales, each once: fused tensors appear under every expert.
std::vector<const TensorSource*> scale_tensors(const LayerTensors& tensors) {
  std::vector<const TensorSource*> found;
  std::set<const TensorSource*> seen;
  for (const LayerTensors::Expert& expert : tensors.experts) {
    for (const auto& part : expert.encoded) {
      for (const auto& [suffix, source] : part) {
        if (has_values(suffix) && seen.insert(source).second) found.push_back(source);
      }
    }
  }
  return found;
}

void add(const Checkpoint& checkpoint, const TensorSource& source, int64_t element,
         const std::string& problem, LoadReport& report) {
  const std::string file = checkpoint.file_name(*source.tensor);
  const TensorRef& ref = source.ref;
  std::string where = fmt::format("layer {}", ref.layer);
  if (ref.expert >= 0) where += fmt::format(", expert {}", ref.expert);
  report.add({FindingKind::kInputScale,
              fmt::format("{}: element {}: {} ({}, {}; {})", source.name, element, problem, where,
                          to_string(ref.part), file),
              source.name, file, ref.layer, ref.expert, std::string(to_string(ref.part)), element});
}

}  // namespace

bool is_input_scale(std::string_view suffix) noexcept {
  return has_values(suffix) || suffix == "input_zero_point";
}

std::vector<InputScaleProblem> find_input_scale_problems(std::span<const InputScale> scales) {
  const bool untouched =
      scales.size() > 1 && std::all_of(scales.begin(), scales.end(), [](const InputScale& scale) {
        return scale.value == kInitial;
      });
  if (untouched) {
    return {{0, fmt::format("expected calibrated scales, found all {} of the layer to be 1, which "
                            "exporters begin with",
                            scales.size())}};
  }
  std::vector<InputScaleProblem> problems;
  for (size_t i = 0; i < scales.size(); ++i) {
    std::string problem = problem_of(scales[i], scales);
    if (!problem.empty()) problems.push_back({i, std::move(problem)});
  }
  return problems;
}

int64_t check_input_scales(const Checkpoint& checkpoint, const LayerTensors& tensors,
                           LoadReport& report) {
  int64_t bytes_read = 0;
  const size_t num_experts = tensors.experts.size();
  std::vector<InputScale> scales;
  std::vector<std::pair<const TensorSource*, int64_t>> places;  // tensor and element of each
  for (const TensorSource* source : scale_tensors(tensors)) {
    const TensorInfo& info = source->tensor->info;
    if (!is_plain_float(info.dtype)) {
      add(checkpoint, *source, 0,
          fmt::format("expected f32, f16 or bf16, found {}", to_string(info.dtype)), report);
      continue;
    }
    // One for the expert; for all experts, and gate and up, where they share a tensor.
    const int64_t most = source->ref.expert >= 0 ? 1 : 2 * static_cast<int64_t>(num_experts);
    if (info.num_elements() < 1 || info.num_elements() > most) {
      add(checkpoint, *source, 0,
          fmt::format("expected one scale a matrix, found {}", shape_text(info.shape)), report);
      continue;
    }
    std::vector<std::byte> raw(static_cast<size_t>(info.num_bytes()));
    checkpoint.files()[static_cast<size_t>(source->tensor->file)].read(info.begin, raw.data(),
                                                                       info.num_bytes());
    bytes_read += info.num_bytes();
    for (int64_t i = 0; i < info.num_elements(); ++i) {
      scales.push_back({source->ref.part, load_as_f32(raw.data(), info.dtype, i)});
      places.emplace_back(source, i);
    }
  }
  for (const InputScaleProblem& problem : find_input_scale_problems(scales)) {
    const auto& [source, element] = places[problem.index];
    add(checkpoint, *source, element, problem.message, report);
  }
  return bytes_read;
}

}  // namespace gantry
