// `gantry quantize --stats`: static input scales, experts without tokens, GPTQ.

#include <gtest/gtest.h>

#include "runtime/calibration.h"
#include "tests/cli/quantize_case.h"

namespace gantry::test {
namespace {

// ---- calibration -------------------------------------------------------------------------------

using Floats = std::vector<float>;

// Of the inputs of w1 and w3, and of w2; empty: none.
struct Hessians {
  Floats gate_up;  // [1, hidden, hidden]
  Floats down;     // [E, intermediate, intermediate]
  int64_t hidden = 0;
  int64_t intermediate = 0;
};

// Statistics as `gantry calibrate` writes them, as far as they are read here.
void write_stats(const TempDir& dir, const std::vector<int64_t>& samples, float hidden, float down,
                 const Hessians& hessians = {}) {
  std::vector<TensorInfo> tensors;
  const auto declare = [&](const char* name, DType dtype, std::vector<int64_t> shape) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.dtype = dtype;
    tensor.shape = std::move(shape);
    tensors.push_back(std::move(tensor));
  };
  const auto num_experts = static_cast<int64_t>(samples.size());
  declare("samples_per_expert", DType::kI64, {num_experts});
  declare("gate_up.layer_amax", DType::kF32, {1});
  declare("down.layer_amax", DType::kF32, {1});
  if (!hessians.gate_up.empty()) {
    declare("gate_up.hessian", DType::kF32, {1, hessians.hidden, hessians.hidden});
    declare("down.hessian", DType::kF32,
            {num_experts, hessians.intermediate, hessians.intermediate});
  }
  SafetensorsWriter writer(dir / calibration_file_name(0), std::move(tensors), {});
  writer.write("samples_per_expert", 0, std::as_bytes(std::span(samples)));
  writer.write("gate_up.layer_amax", 0, std::as_bytes(std::span(&hidden, 1)));
  writer.write("down.layer_amax", 0, std::as_bytes(std::span(&down, 1)));
  if (!hessians.gate_up.empty()) {
    writer.write("gate_up.hessian", 0, std::as_bytes(std::span(hessians.gate_up)));
    writer.write("down.hessian", 0, std::as_bytes(std::span(hessians.down)));
  }
  writer.finish();
  dir.write("calibration.json", "{}");
}

float scalar_of(const MutableCheckpoint& checkpoint, const std::string& name) {
  float value = 0.0F;
  std::memcpy(&value, checkpoint.tensors.at(name).bytes.data(), 4);
  return value;
}

TEST(QuantizeInputs, HaveTheScalesOfTheStatistics) {
  const TempDir stats;
  write_stats(stats, {7, 0, 3, 0}, 5.0F, 11.0F);
  const CapturedLog log;
  const auto nvfp4 = quantize(source_dir("qwen3_moe"), {.format = "nvfp4"}, stats.path());
  const auto found = MutableCheckpoint::read(nvfp4->out);
  const std::string experts = "model.layers.0.mlp.experts.";
  for (const char* expert : {"0.", "1.", "3."}) {
    EXPECT_EQ(scalar_of(found, experts + expert + "gate_proj.input_scale"), 5.0F / 2688.0F);
    EXPECT_EQ(scalar_of(found, experts + expert + "up_proj.input_scale"), 5.0F / 2688.0F);
    EXPECT_EQ(scalar_of(found, experts + expert + "down_proj.input_scale"), 11.0F / 2688.0F);
  }
  EXPECT_NE(log.warnings().find("layer 0: experts without calibration tokens: 1, 3;"),
            std::string::npos)
      << log.warnings();

  const auto divides = quantize(source_dir("qwen3_moe"), {.format = "nvfp4-ct"}, stats.path());
  EXPECT_EQ(
      scalar_of(MutableCheckpoint::read(divides->out), experts + "2.down_proj.input_global_scale"),
      2688.0F / 11.0F);
  const auto fp8 = quantize(source_dir("qwen3_moe"), {.format = "fp8-tensor"}, stats.path());
  EXPECT_EQ(scalar_of(MutableCheckpoint::read(fp8->out), experts + "2.down_proj.input_scale"),
            11.0F / 448.0F);
}

// No token at all, or no statistics: scales are finite and of the right size, whatever the format,
// and the warning names exactly the experts.
TEST(QuantizeInputs, AreSaneWithoutCalibration) {
  const TempDir empty;
  write_stats(empty, {0, 0, 0, 0}, 0.0F, 0.0F);
  for (const bool with_stats : {false, true}) {
    for (const char* format : {"fp8-tensor", "fp8-static", "nvfp4", "nvfp4-ct"}) {
      SCOPED_TRACE(format);
      const CapturedLog log;
      const auto done =
          quantize(source_dir("qwen3_moe"), {.format = format}, with_stats ? empty.path() : path());
      EXPECT_NE(log.warnings().find(with_stats ? "calibration tokens: 0, 1, 2, 3;" : "no --stats"),
                std::string::npos)
          << log.warnings();
      MoeModel model(done->out, /*names_only=*/false);
      const VerifySettings settings;
      const VerifyResult verified = verify_model(model, nullptr, settings, {});
      EXPECT_GT(verified.load.bytes_read, 0);
      EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
    }
  }
}

TEST(QuantizeInputs, OfAnotherModelAreRefused) {
  const TempDir stats;
  write_stats(stats, {1, 1}, 5.0F, 11.0F);
  expect_error([&] { (void)quantize(source_dir("qwen3_moe"), {.format = "nvfp4"}, stats.path()); },
               ErrorCode::kFormat, {"samples_per_expert", "4 elements"});
  const TempDir unfinished;
  expect_error(
      [&] { (void)quantize(source_dir("qwen3_moe"), {.format = "nvfp4"}, unfinished.path()); },
      ErrorCode::kInvalidArgument, {"calibration.json"});
}

// ---- GPTQ --------------------------------------------------------------------------------------

// Rows [count, n] of heavy-tailed channels that hang together: where GPTQ has something to gain.
std::vector<float> activations(SeededRng& rng, int64_t count, int64_t n) {
  std::vector<float> rows(static_cast<size_t>(count * n));
  for (int64_t r = 0; r < count; ++r) {
    const float common = rng.normal();
    for (int64_t i = 0; i < n; ++i) {
      const float channel = i % 16 == 0 ? 8.0F : 1.0F;
      rows[static_cast<size_t>(r * n + i)] = channel * (0.7F * common + 0.7F * rng.normal());
    }
  }
  return rows;
}

std::vector<float> hessian_of(const std::vector<float>& rows, int64_t n) {
  std::vector<float> hessian(static_cast<size_t>(n * n), 0.0F);
  for (size_t r = 0; r < rows.size(); r += static_cast<size_t>(n)) {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j)
        hessian[static_cast<size_t>(i * n + j)] +=
            rows[r + static_cast<size_t>(i)] * rows[r + static_cast<size_t>(j)];
    }
  }
  return hessian;
}

// Of 4 experts with H 256, I 128, of which the last one never saw a token: gate and up share one
// Hessian, as --route-all gives it.
class QuantizeGptqTest : public testing::TestWithParam<std::string> {
 protected:
  QuantizeGptqTest() {
    const std::vector<float> gate_up = hessian_of(activations(rng, 600, 256), 256);
    std::vector<float> down;
    for (int e = 0; e < 4; ++e) {
      std::vector<float> one = hessian_of(activations(rng, 400, 128), 128);
      if (e == 3) std::fill(one.begin(), one.end(), 0.0F);
      down.insert(down.end(), one.begin(), one.end());
    }
    write_stats(stats, {400, 400, 400, 0}, 40.0F, 40.0F, {gate_up, down, 256, 128});
  }

  // ||X (W - Wq)^T|| / ||X W^T||
  static double output_error(const std::vector<float>& rows, const std::vector<float>& found,
                             const std::vector<float>& weights, int64_t in) {
    double error = 0.0;
    double size = 0.0;
    for (size_t r = 0; r < rows.size(); r += static_cast<size_t>(in)) {
      for (size_t o = 0; o < weights.size(); o += static_cast<size_t>(in)) {
        double difference = 0.0;
        double whole = 0.0;
        for (size_t i = 0; i < static_cast<size_t>(in); ++i) {
          difference += static_cast<double>(rows[r + i]) * (found[o + i] - weights[o + i]);
          whole += static_cast<double>(rows[r + i]) * weights[o + i];
        }
        error += difference * difference;
        size += whole * whole;
      }
    }
    return std::sqrt(error / size);
  }

  TempDir stats;
  SeededRng rng;
};

TEST_P(QuantizeGptqTest, LosesLessOfTheOutputsThanRoundingToNearest) {
  const auto source = expert_matrices(source_dir("qwen3_moe"));
  const auto rtn = quantize(source_dir("qwen3_moe"), {.format = GetParam()}, stats.path());
  const auto nearest = expert_matrices(rtn->out);
  for (const GptqOrder order : {GptqOrder::kInOrder, GptqOrder::kByActivation}) {
    const CapturedLog log;
    cli::StatsHessians hessians(stats.path(), {.order = order});
    const auto gptq =
        quantize(source_dir("qwen3_moe"), {.format = GetParam()}, stats.path(), 0, &hessians);
    EXPECT_NE(log.warnings().find("layer 0: experts without calibration tokens: 3;"),
              std::string::npos)
        << log.warnings();
    const auto solved = expert_matrices(gptq->out);
    for (size_t m = 0; m < source.size(); ++m) {
      SCOPED_TRACE(m);
      const int64_t in = m % 3 == 2 ? 128 : 256;
      if (m == 11) {  // w2 of the expert that no token reached
        EXPECT_TRUE(solved[m] == nearest[m]);
        continue;
      }
      const std::vector<float> held_out = activations(rng, 40, in);  // not calibrated on
      EXPECT_LT(output_error(held_out, solved[m], source[m], in),
                output_error(held_out, nearest[m], source[m], in))
          << "seed " << rng.seed();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantizeGptqTest,
                         testing::Values("int4-g128", "gptq-asym", "mxfp4", "nvfp4"),
                         [](const auto& p) { return readable(p.param); });

TEST(QuantizeGptq, NamesTheHessianThatIsMissing) {
  const TempDir without;
  write_stats(without, {1, 1, 1, 1}, 5.0F, 11.0F);
  cli::StatsHessians hessians(without.path(), {});
  expect_error(
      [&] {
        (void)quantize(source_dir("qwen3_moe"), {.format = "gptq"}, without.path(), 0, &hessians);
      },
      ErrorCode::kInvalidArgument, {"layer-00000", "hessian", "--hessians"});
}

}  // namespace
}  // namespace gantry::test
