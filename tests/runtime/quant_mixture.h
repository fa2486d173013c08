#pragma once

// Checkpoints put together from the exporters' goldens, and what the loader makes of them.

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/moe_model.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace gantry::test {
using nlohmann::json;

constexpr int kNumExperts = 4;
constexpr int64_t kHidden = 256;
constexpr int64_t kIntermediate = 128;

inline MutableCheckpoint golden(const std::string& name) {
  return MutableCheckpoint::read(golden_root() / "quant" / name);
}

inline json quantization_of(const MutableCheckpoint& checkpoint) {
  return json::parse(checkpoint.config).at("quantization_config");
}

inline void set_quantization(MutableCheckpoint& checkpoint, const json& quantization) {
  json config = json::parse(checkpoint.config);
  config["quantization_config"] = quantization;
  checkpoint.config = config.dump();
}

using Selection = std::function<bool(const std::string& name)>;

inline Selection containing(const std::string& text) {
  return [=](const std::string& name) { return name.find(text) != std::string::npos; };
}

// Replaces the tensors that `selected` names by those of another checkpoint.
inline void take(MutableCheckpoint& target, const MutableCheckpoint& source,
                 const Selection& selected) {
  std::erase_if(target.tensors, [&](const auto& entry) { return selected(entry.first); });
  for (const auto& [name, tensor] : source.tensors) {
    if (selected(name)) target.tensors[name] = tensor;
  }
}

/// Whether two ways of loading gave the same weights. Codes keep the inverse of a second-level
/// divisor: 3 roundings instead of 1 where f32 has the quotient, so up to 2 steps of f32 apart.
inline bool same_decoded(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::abs(int64_t{std::bit_cast<int32_t>(x)} - std::bit_cast<int32_t>(y)) <= 2;
  });
}

/// One rank's weights of one layer, in f32.
struct Loaded {
  std::string problem;
  std::vector<std::string> notes;
  std::vector<std::vector<float>> w13;  // by expert: [2J, H]
  std::vector<std::vector<float>> w2;   // by expert: [H, J]
  std::vector<float> shared_w13;
  std::vector<float> shared_w2;

  // Rows of gate, then of up.
  [[nodiscard]] std::vector<float> gate(int expert) const { return half(expert, 0); }
  [[nodiscard]] std::vector<float> up(int expert) const { return half(expert, 1); }

 private:
  [[nodiscard]] std::vector<float> half(int expert, int which) const {
    const std::vector<float>& all = w13[static_cast<size_t>(expert)];
    const auto size = static_cast<ptrdiff_t>(all.size() / 2);
    return {all.begin() + which * size, all.begin() + (which + 1) * size};
  }
};

inline Loaded load_directory(const std::filesystem::path& directory, ParallelConfig parallel = {},
                             int layer = 0) {
  Loaded loaded;
  MoeModel model(directory, /*names_only=*/false);
  loaded.notes = model.report().notes();
  loaded.problem = summarize(model.report(), 100);
  if (!model.report().ok()) return loaded;
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  LoadOptions options;
  options.threads.count = 1;
  LoadStats stats;
  const MoeLayerWeights weights =
      loader.load_layer(layer, parallel, ExpertMap::create(kNumExperts, 1, Placement::kLinear),
                        options, model.report(), stats);
  loaded.problem = summarize(model.report(), 100);
  for (int64_t slot = 0; slot < weights.num_slots; ++slot) {
    const std::byte* data = weights.slots.data() + slot * weights.layout.stride_bytes;
    loaded.w13.push_back(read_w13(weights.layout, data));
    loaded.w2.push_back(read_w2(weights.layout, data));
  }
  if (weights.shared.size() > 0) {
    loaded.shared_w13 = read_w13(weights.shared_layout, weights.shared.data());
    loaded.shared_w2 = read_w2(weights.shared_layout, weights.shared.data());
  }
  return loaded;
}

inline Loaded load(const MutableCheckpoint& checkpoint, ParallelConfig parallel = {},
                   int layer = 0) {
  const TempDir dir;
  checkpoint.write(dir.path());
  return load_directory(dir.path(), parallel, layer);
}

}  // namespace gantry::test
