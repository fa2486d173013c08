// GPTQ on one layer of a checkpoint, start to end: made-up hidden states with heavy tails and
// correlated channels, calibration with every token sent to every expert, each matrix solved, and
// each expert's output on tokens that calibration did not see compared with round-to-nearest.
//
//   gptq_layer_bench DIR WORK [layer] [tokens] [held out] [bits] [group] [memory MB] [seed]
//
// Prints one JSON line an expert and a summary. Not a Google Benchmark: one run takes minutes.

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/quant/gptq.h"
#include "kernels/quant/integer_grid.h"
#include "loader/matrix_reader.h"
#include "loader/safetensors_writer.h"
#include "runtime/calibration.h"
#include "runtime/difference.h"
#include "runtime/moe_model.h"

namespace gantry {
namespace {

namespace fs = std::filesystem;

struct Options {
  fs::path model;
  fs::path work;
  int layer = 0;
  int64_t tokens = 2048;
  int64_t held_out = 256;
  int bits = 4;
  int64_t group = 128;
  int64_t memory_mb = 4096;
  uint64_t seed = 1;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

// x = s * (noise + A f): channel sizes s are lognormal (a few channels are 10 to 30 times as large
// as most), noise is Student's t with 4 degrees of freedom, and 64 common factors f mix channels.
std::vector<float> make_hidden_states(int64_t num_tokens, int64_t n, uint64_t seed) {
  constexpr int64_t kFactors = 64;
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(4.0F);
  std::vector<float> size(static_cast<size_t>(n));
  for (float& s : size)
    s = std::exp(normal(generator));
  std::vector<float> mix(static_cast<size_t>(n * kFactors));
  for (float& a : mix)
    a = normal(generator) / std::sqrt(static_cast<float>(kFactors));
  std::vector<float> x(static_cast<size_t>(num_tokens * n));
  std::vector<float> factors(kFactors);
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (float& f : factors)
      f = 1.5F * heavy(generator);
    for (int64_t i = 0; i < n; ++i) {
      float value = heavy(generator);
      for (int64_t k = 0; k < kFactors; ++k)
        value += mix[static_cast<size_t>(i * kFactors + k)] * factors[static_cast<size_t>(k)];
      x[static_cast<size_t>(t * n + i)] = size[static_cast<size_t>(i)] * value;
    }
  }
  return x;
}

fs::path write_captures(const Options& options, const MoeLayerSpec& spec,
                        std::span<const float> rows) {
  const fs::path path = options.work / "captures.safetensors";
  const std::string name = fmt::format("model.layers.{}.mlp.input", spec.layer);
  SafetensorsWriter writer(path, {{name, DType::kF32, {options.tokens, spec.hidden_size}}}, {});
  writer.write(name, 0, std::as_bytes(rows));
  writer.finish();
  return path;
}

std::vector<float> read_slab(const SafetensorsFile& file, const std::string& name, int expert) {
  const TensorInfo* info = file.find(name);
  GANTRY_CHECK(info != nullptr, ErrorCode::kFormat, "no {}", name);
  const int64_t bytes = info->num_bytes() / info->shape[0];
  std::vector<float> values(static_cast<size_t>(bytes / 4));
  file.read(info->begin + (info->shape[0] == 1 ? 0 : expert) * bytes, values.data(), bytes);
  return values;
}

std::vector<float> dequantize(const GptqMatrix& matrix, int64_t out, int64_t in, int64_t group) {
  const int64_t groups = static_cast<int64_t>(matrix.scales.size()) / out;
  std::vector<float> values(matrix.codes.size());
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const GptqScale& scale = matrix.scales[static_cast<size_t>(o * groups + i / group)];
      const auto at = static_cast<size_t>(o * in + i);
      values[at] = static_cast<float>(matrix.codes[at] - scale.zero) * scale.step;
    }
  }
  return values;
}

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

double relative(const std::vector<float>& a, const std::vector<float>& b) {
  Difference difference;
  difference.add(a, b);
  return difference.relative();
}

void run(const Options& options) {
  MoeModel model(options.model, false);
  GANTRY_CHECK(model.report().ok(), ErrorCode::kFormat, "{} has findings", options.model.string());
  const MoeLayerSpec& spec = *model.config().find_layer(options.layer);
  const int64_t h = spec.hidden_size;
  const int64_t n = spec.intermediate_size;
  std::printf(
      "layer %d: E %d H %ld I %ld, %ld tokens, %ld held out, %d bits, groups of %ld, "
      "memory %ld MB, seed %lu\n",
      spec.layer, spec.num_experts, h, n, options.tokens, options.held_out, options.bits,
      options.group, options.memory_mb, options.seed);
  const std::vector<float> all =
      make_hidden_states(options.tokens + options.held_out, h, options.seed);
  const auto calibration = std::span(all).first(static_cast<size_t>(options.tokens * h));
  const auto held_out = std::span(all).subspan(calibration.size());
  const std::vector<fs::path> files = {write_captures(options, spec, calibration)};
  const ActivationFiles activations(files, model.config());
  CalibrationSettings settings;
  settings.route_all = true;
  settings.hessians = true;
  settings.memory_bytes = options.memory_mb << 20;
  double start = now();
  calibrate_layer(model, spec.layer, activations, settings, options.work);
  std::printf("calibrate: %.1f s, peak memory %ld MB\n", now() - start, peak_rss_mb());
  std::fflush(stdout);

  const SafetensorsFile stats(options.work / calibration_file_name(spec.layer));
  const MatrixReader reader(model.checkpoint(), model.config(), model.tensors());
  const IntegerGrid grid(options.bits, /*symmetric=*/true, DType::kBF16);
  const GptqScales scales{.group = options.group};
  start = now();
  const GptqHessian inner(read_slab(stats, "gate_up.hessian", 0), h, {}, {});
  double solving = now() - start;
  const std::vector<float> none(static_cast<size_t>(h * h), 0.0F);
  const GptqHessian nearest_inner(none, h, {}, {});
  const std::vector<float> none_down(static_cast<size_t>(n * n), 0.0F);
  const GptqHessian nearest_down(none_down, n, {}, {});
  int better = 0;
  double sum_gptq = 0.0;
  double sum_rtn = 0.0;
  for (int e = 0; e < spec.num_experts; ++e) {
    const ExpertWeights exact{reader.read(spec.layer, e, Part::kW1),
                              reader.read(spec.layer, e, Part::kW3),
                              reader.read(spec.layer, e, Part::kW2)};
    const auto quantize = [&](const GptqHessian& in, const GptqHessian& down) {
      const auto solve = [&](const std::vector<float>& w, int64_t out, const GptqHessian& hessian) {
        return dequantize(gptq_quantize(w, out, hessian, scales, grid, {}), out, hessian.size(),
                          options.group);
      };
      return ExpertWeights{solve(exact.w1, n, in), solve(exact.w3, n, in),
                           solve(exact.w2, h, down)};
    };
    start = now();
    const GptqHessian down(read_slab(stats, "down.hessian", e), n, {}, {});
    const ExpertWeights gptq = quantize(inner, down);
    solving += now() - start;
    const ExpertWeights rtn = quantize(nearest_inner, nearest_down);
    const std::vector<float> y = forward(exact, spec, held_out);
    const double error = relative(y, forward(gptq, spec, held_out));
    const double rtn_error = relative(y, forward(rtn, spec, held_out));
    better += error < rtn_error ? 1 : 0;
    sum_gptq += error;
    sum_rtn += rtn_error;
    std::printf("{\"expert\": %d, \"gptq\": %.5f, \"rtn\": %.5f}\n", e, error, rtn_error);
    std::fflush(stdout);
  }
  std::printf(
      "GPTQ: %.1f s of solving; held-out error of the experts' outputs: mean %.5f, RTN "
      "%.5f; lower for %d of %d experts; peak memory %ld MB\n",
      solving, sum_gptq / spec.num_experts, sum_rtn / spec.num_experts, better, spec.num_experts,
      peak_rss_mb());
}

}  // namespace
}  // namespace gantry

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: gptq_layer_bench DIR WORK [layer] [tokens] [held out] [bits] "
                 "[group] [memory MB] [seed]\n");
    return 2;
  }
  gantry::Options options;
  options.model = argv[1];
  options.work = argv[2];
  const auto number = [&](int at, int64_t fallback) {
    return argc > at ? std::stoll(argv[at]) : fallback;
  };
  options.layer = static_cast<int>(number(3, 0));
  options.tokens = number(4, options.tokens);
  options.held_out = number(5, options.held_out);
  options.bits = static_cast<int>(number(6, options.bits));
  options.group = number(7, options.group);
  options.memory_mb = number(8, options.memory_mb);
  options.seed = static_cast<uint64_t>(number(9, 1));
  std::filesystem::create_directories(options.work);
  try {
    gantry::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
