#pragma once

// A source that was calibrated on made-up hidden states, and what `gantry quantize` makes of it.

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <fstream>
#include <optional>

#include "runtime/calibration.h"
#include "tests/cli/quantize_case.h"
#include "tools/awq_scaling.h"

namespace gantry::test {

using Floats = std::vector<float>;

// What hidden states of a layer look like: heavy tails, a few channels of 20 times the others'
// size, and channels that hang together by 16 common factors: what both methods are for.
struct HiddenStates {
  static constexpr size_t kFactors = 16;

  HiddenStates(SeededRng& rng, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      sizes.push_back(std::exp(0.7F * rng.normal()) * (i % 37 == 5 ? 20.0F : 1.0F));
      for (size_t f = 0; f < kFactors; ++f)
        mix.push_back(0.4F * rng.normal());
    }
  }

  [[nodiscard]] Floats rows(SeededRng& rng, int64_t count) const {
    Floats values;
    for (int64_t r = 0; r < count; ++r) {
      const float tail = 1.0F / (0.5F + std::fabs(rng.normal()));
      std::array<float, kFactors> factors{};
      for (float& factor : factors)
        factor = rng.normal();
      for (size_t i = 0; i < sizes.size(); ++i) {
        float value = rng.normal();
        for (size_t f = 0; f < kFactors; ++f)
          value += mix[i * kFactors + f] * factors[f];
        values.push_back(sizes[i] * tail * value);
      }
    }
    return values;
  }

  Floats sizes;
  Floats mix;
};

// A source with its statistics, of all layers.
class Calibrated {
 public:
  explicit Calibrated(path source, bool route_all = true, int64_t num_tokens = 1024)
      : source_(std::move(source)) {
    MoeModel model(source_, /*names_only=*/false);
    std::vector<TensorInfo> tensors;
    std::vector<Floats> captures;
    for (const MoeLayerSpec& spec : model.config().layers) {
      hidden_.emplace_back(rng, spec.hidden_size);
      captures.push_back(hidden_.back().rows(rng, num_tokens));
      tensors.push_back({fmt::format("model.layers.{}.mlp.input", spec.layer),
                         DType::kF32,
                         {num_tokens, spec.hidden_size}});
    }
    const path file = dir_ / "captures.safetensors";
    SafetensorsWriter writer(file, tensors, {});
    for (size_t l = 0; l < tensors.size(); ++l)
      writer.write(tensors[l].name, 0, std::as_bytes(std::span(captures[l])));
    writer.finish();
    const std::vector<path> files = {file};
    const ActivationFiles activations(files, model.config());
    CalibrationSettings settings;
    settings.route_all = route_all;
    settings.hessians = true;
    std::filesystem::create_directory(stats());
    for (const MoeLayerSpec& spec : model.config().layers)
      calibrate_layer(model, spec.layer, activations, settings, stats());
    std::ofstream(stats() / "calibration.json") << "{}";
  }

  enum class Method { kRtn, kGptq, kAwq };

  [[nodiscard]] std::unique_ptr<Quantized> quantize(const cli::QuantizeRequest& request,
                                                    Method method) const {
    auto done = std::make_unique<Quantized>();
    done->out = done->dir / "out";
    MoeModel model(source_, /*names_only=*/false);
    const cli::QuantizePlan plan = cli::plan_quantize(model, request);
    cli::StatsHessians hessians(
        stats(), {.order = request.desc_act ? GptqOrder::kByActivation : GptqOrder::kInOrder});
    cli::QuantizeRun run;
    run.directory = done->out;
    run.memory_bytes = int64_t{1} << 30;
    run.fingerprint = "test";
    run.threads.count = 2;
    run.ranges = cli::InputRanges::read(stats(), model.config());
    if (method == Method::kGptq) run.hessians = &hessians;
    std::optional<cli::AwqScaling> awq;
    if (method == Method::kAwq) run.awq = &awq.emplace(model, plan, hessians, stats(), run.threads);
    done->result = cli::run_quantize(model, plan, run);
    return done;
  }

  // Other tokens of a layer.
  Floats held_out(size_t layer, int64_t count) { return hidden_[layer].rows(rng, count); }
  [[nodiscard]] path stats() const { return dir_ / "stats"; }

  SeededRng rng;

 private:
  path source_;
  TempDir dir_;
  std::vector<HiddenStates> hidden_;
};

}  // namespace gantry::test
