#include "tools/input_ranges.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/base/check.h"
#include "loader/safetensors.h"
#include "runtime/calibration.h"

namespace gantry::cli {
namespace {

template <typename T>
std::vector<T> read_values(const SafetensorsFile& file, const std::string& name, DType dtype,
                           int64_t count) {
  const TensorInfo* info = file.find(name);
  GANTRY_CHECK(info != nullptr && info->dtype == dtype && info->num_elements() == count,
               ErrorCode::kFormat, "{}: expected {} with {} elements of {}, found {}",
               file.path().string(), name, count, to_string(dtype),
               info == nullptr ? "nothing" : describe(*info));
  std::vector<T> values(static_cast<size_t>(count));
  file.read(info->begin, values.data(), info->num_bytes());
  return values;
}

float read_amax(const SafetensorsFile& file, const std::string& name) {
  const float amax = read_values<float>(file, name, DType::kF32, 1)[0];
  GANTRY_CHECK(std::isfinite(amax) && amax >= 0.0F, ErrorCode::kFormat,
               "{}: {}: expected a magnitude, found {}", file.path().string(), name, amax);
  return amax;
}

}  // namespace

InputRanges InputRanges::read(const std::filesystem::path& directory,
                              const MoeModelConfig& config) {
  InputRanges ranges;
  GANTRY_CHECK(std::filesystem::exists(directory / "calibration.json"), ErrorCode::kInvalidArgument,
               "{}: no calibration.json: not the statistics of a whole run of gantry calibrate",
               directory.string());
  for (const MoeLayerSpec& spec : config.layers) {
    const auto path = directory / calibration_file_name(spec.layer);
    GANTRY_CHECK(std::filesystem::exists(path), ErrorCode::kInvalidArgument,
                 "{}: no statistics of layer {}", directory.string(), spec.layer);
    const SafetensorsFile file(path);
    Layer& layer = ranges.layers_[spec.layer];
    const auto samples =
        read_values<int64_t>(file, "samples_per_expert", DType::kI64, spec.num_experts);
    for (size_t e = 0; e < samples.size(); ++e) {
      if (samples[e] <= 0) layer.uncalibrated.push_back(static_cast<int>(e));
    }
    layer.amax = {read_amax(file, "gate_up.layer_amax"), read_amax(file, "down.layer_amax")};
  }
  return ranges;
}

std::optional<float> InputRanges::amax(int layer, bool down) const {
  const auto found = layers_.find(layer);
  if (found == layers_.end()) return std::nullopt;
  const float amax = found->second.amax[down ? 1 : 0];
  return amax > 0.0F ? std::optional(amax) : std::nullopt;
}

std::vector<int> InputRanges::uncalibrated(int layer) const {
  const auto found = layers_.find(layer);
  return found == layers_.end() ? std::vector<int>() : found->second.uncalibrated;
}

float assumed_hidden_amax(int64_t hidden_size) noexcept {
  return std::sqrt(static_cast<float>(hidden_size));
}

float assumed_down_amax(float largest_gate, float largest_up) noexcept {
  constexpr float kDeviations = 6.0F;
  const float amax = kDeviations * largest_gate * kDeviations * largest_up;
  return std::clamp(amax, 0x1p-20F, 0x1p20F);  // of weights of zeros, or absurd ones
}

float largest_row_norm(const std::vector<float>& weights, int64_t in) noexcept {
  const auto n = static_cast<size_t>(in);
  float largest = 0.0F;
  for (size_t begin = 0; begin < weights.size(); begin += n) {
    std::array<float, 16> sums{};  // side by side: one sum is a chain of additions
    size_t i = 0;
    for (; i + sums.size() <= n; i += sums.size()) {
      for (size_t l = 0; l < sums.size(); ++l)
        sums[l] += weights[begin + i + l] * weights[begin + i + l];
    }
    for (; i < n; ++i)
      sums[0] += weights[begin + i] * weights[begin + i];
    largest = std::max(largest, std::accumulate(sums.begin(), sums.end(), 0.0F));
  }
  return std::sqrt(largest);
}

}  // namespace gantry::cli
