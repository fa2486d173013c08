// How far quantized checkpoints are from their source: each expert's output on given hidden states,
// every token through every expert.
//
//   expert_error_bench SOURCE ACTIVATIONS QUANTIZED ...
//
// Prints one JSON line an expert with the relative error of each checkpoint, and a summary: mean
// errors, and for how many experts a checkpoint is nearer to the source than the first one. Hidden
// states are divided by what a checkpoint folded into the norm in front of the block (AWQ). Not a
// Google Benchmark: one run takes a minute.

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/matrix_reader.h"
#include "runtime/activation_files.h"
#include "runtime/difference.h"
#include "runtime/moe_model.h"
#include "runtime/undo_smoothing.h"

namespace gantry {
namespace {

namespace fs = std::filesystem;

// y = x W^T by the panel kernels.
std::vector<float> multiply(std::span<const float> x, const std::vector<float>& w, int64_t out,
                            int64_t in) {
  const PackedLayout layout{DType::kF32, false, out, in};
  ByteBuffer panels(static_cast<size_t>(layout.bytes()));
  pack_matrix(layout, w.data(), panels.data());
  const FusedExpertsKernels kernels = select_fused_experts({.weights = DType::kF32,
                                                            .activations = ActivationDType::kF32,
                                                            .isas = host_isas(),
                                                            .avx512_dot = Avx512Dot::kFma});
  const int64_t rows = static_cast<int64_t>(x.size()) / in;
  FusedExpertsScratch scratch(linear_scratch(layout, kernels, rows));
  std::vector<float> y(static_cast<size_t>(rows * out));
  linear(x, layout, panels.data(), nullptr, y, kernels, {}, scratch);
  return y;
}

struct ExpertWeights {
  std::vector<float> w1;
  std::vector<float> w3;
  std::vector<float> w2;
};

std::vector<float> forward(const ExpertWeights& weights, const MoeLayerSpec& spec,
                           std::span<const float> x) {
  const int64_t h = spec.hidden_size;
  const int64_t n = spec.intermediate_size;
  std::vector<float> gate = multiply(x, weights.w1, n, h);
  const std::vector<float> up = multiply(x, weights.w3, n, h);
  apply_activation(spec.activation, static_cast<int64_t>(x.size()) / h, n, gate.data(), n,
                   up.data(), n, gate.data(), n);
  return multiply(gate, weights.w2, h, n);
}

ExpertWeights read_expert(const MoeModel& model, int layer, int expert) {
  const MatrixReader reader(model.checkpoint(), model.config(), model.tensors());
  return {reader.read(layer, expert, Part::kW1), reader.read(layer, expert, Part::kW3),
          reader.read(layer, expert, Part::kW2)};
}

std::unique_ptr<MoeModel> open(const fs::path& directory) {
  auto model = std::make_unique<MoeModel>(directory, /*names_only=*/false);
  GANTRY_CHECK(model->report().ok(), ErrorCode::kFormat, "{} has findings", directory.string());
  return model;
}

// The hidden states as the norm of a quantized checkpoint gives them.
std::vector<float> smoothed(const MoeModel& source, const MoeModel& quantized,
                            const MoeLayerSpec& spec, std::vector<float> x) {
  const std::string norm = fmt::format("{}layers.{}.post_attention_layernorm.weight",
                                       source.tensors().names().prefix(), spec.layer);
  if (source.checkpoint().find(norm) == nullptr) return x;
  const std::vector<float> ratio = norm_ratio(source, quantized, spec);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] *= ratio[i % ratio.size()];
  return x;
}

void run_layer(const MoeModel& source, const MoeLayerSpec& spec, const ActivationFiles& activations,
               const std::vector<fs::path>& directories) {
  const int64_t tokens = activations.num_tokens(spec.layer);
  std::vector<float> x(static_cast<size_t>(tokens * spec.hidden_size));
  activations.read(spec.layer, 0, tokens, x);
  std::vector<std::unique_ptr<MoeModel>> quantized;
  std::vector<std::vector<float>> inputs;
  for (const fs::path& directory : directories) {
    quantized.push_back(open(directory));
    inputs.push_back(smoothed(source, *quantized.back(), spec, x));
  }
  std::vector<double> sums(directories.size(), 0.0);
  std::vector<int> better(directories.size(), 0);
  for (int e = 0; e < spec.num_experts; ++e) {
    const std::vector<float> y = forward(read_expert(source, spec.layer, e), spec, x);
    std::string line = fmt::format("{{\"layer\": {}, \"expert\": {}", spec.layer, e);
    double first = 0.0;
    for (size_t q = 0; q < quantized.size(); ++q) {
      Difference difference;
      difference.add(y, forward(read_expert(*quantized[q], spec.layer, e), spec, inputs[q]));
      const double error = difference.relative();
      if (q == 0) first = error;
      sums[q] += error;
      better[q] += error < first ? 1 : 0;
      line += fmt::format(", \"{}\": {:.5f}", directories[q].filename().string(), error);
    }
    std::printf("%s}\n", line.c_str());
    std::fflush(stdout);
  }
  for (size_t q = 0; q < quantized.size(); ++q) {
    std::printf("layer %d, %ld tokens: %s: mean error %.5f, below %s for %d of %d experts\n",
                spec.layer, tokens, directories[q].filename().c_str(), sums[q] / spec.num_experts,
                directories[0].filename().c_str(), better[q], spec.num_experts);
  }
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: expert_error_bench SOURCE ACTIVATIONS QUANTIZED ...\n");
    return 2;
  }
  try {
    const auto source = gantry::open(argv[1]);
    const std::vector<std::filesystem::path> files = {argv[2]};
    const gantry::ActivationFiles activations(files, source->config());
    const std::vector<std::filesystem::path> directories(argv + 3, argv + argc);
    for (const gantry::MoeLayerSpec& spec : source->config().layers) {
      if (activations.num_tokens(spec.layer) > 0)
        gantry::run_layer(*source, spec, activations, directories);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
