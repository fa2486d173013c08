// What calibration collects, against sums in f64 over the golden hidden states.

#include "runtime/calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>

#include "kernels/base/error.h"
#include "loader/matrix_reader.h"
#include "loader/safetensors_writer.h"
#include "runtime/input_statistics.h"
#include "runtime/reference.h"
#include "tests/support/golden_dirs.h"

namespace gantry::test {
namespace {

namespace fs = std::filesystem;

// A file of statistics, read back without any code of calibration.
class StatsFile {
 public:
  explicit StatsFile(const fs::path& path) : file_(path) {}

  template <typename T>
  std::vector<T> read(const std::string& name) const {
    const TensorInfo* info = file_.find(name);
    EXPECT_NE(info, nullptr) << name;
    if (info == nullptr) return {};
    EXPECT_EQ(info->dtype, sizeof(T) == 8 ? DType::kI64 : DType::kF32) << name;
    std::vector<T> values(static_cast<size_t>(info->num_elements()));
    file_.read(info->begin, values.data(), info->num_bytes());
    return values;
  }
  [[nodiscard]] bool has(const std::string& name) const { return file_.find(name) != nullptr; }

 private:
  SafetensorsFile file_;
};

class CalibrationTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = fs::path(testing::TempDir()) / "calibration" / test->name();
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  static fs::path family(const std::string& name) { return golden_root() / "families" / name; }

  fs::path directory_;
};

struct Captures {
  explicit Captures(const fs::path& directory)
      : model(directory, false),
        files{directory / "moe_io.safetensors"},
        activations(files, model.config()),
        reference(read_reference(files[0], model.config())) {}

  MoeModel model;
  std::vector<fs::path> files;
  ActivationFiles activations;
  Reference reference;
};

// f(W1 x, W3 x) of one expert in f64, for silu and rows x [T, H].
std::vector<double> intermediate(const MatrixReader& reader, const MoeLayerSpec& spec, int expert,
                                 const std::vector<float>& x) {
  const std::vector<float> w1 = reader.read(spec.layer, expert, Part::kW1);
  const std::vector<float> w3 = reader.read(spec.layer, expert, Part::kW3);
  const auto h = static_cast<size_t>(spec.hidden_size);
  const auto n = static_cast<size_t>(spec.intermediate_size);
  std::vector<double> values;
  for (size_t t = 0; t < x.size() / h; ++t) {
    for (size_t i = 0; i < n; ++i) {
      double gate = 0.0;
      double up = 0.0;
      for (size_t k = 0; k < h; ++k) {
        gate += static_cast<double>(w1[i * h + k]) * x[t * h + k];
        up += static_cast<double>(w3[i * h + k]) * x[t * h + k];
      }
      values.push_back(gate / (1.0 + std::exp(-gate)) * up);
    }
  }
  return values;
}

template <typename T>
void expect_statistics(const StatsFile& stats, const std::string& input, size_t expert,
                       const std::vector<T>& rows, size_t n, bool shared_hessian) {
  const size_t num_rows = rows.size() / n;
  std::vector<double> amax(n, 0.0);
  std::vector<double> sum(n, 0.0);
  for (size_t r = 0; r < num_rows; ++r) {
    for (size_t i = 0; i < n; ++i) {
      const double magnitude = std::abs(static_cast<double>(rows[r * n + i]));
      amax[i] = std::max(amax[i], magnitude);
      sum[i] += magnitude;
    }
  }
  const double largest = *std::max_element(amax.begin(), amax.end());
  // f32 sums of H = 64 terms against f64.
  const double tolerance = 1e-5 * largest + 1e-30;
  EXPECT_NEAR(stats.read<float>(input + ".amax")[expert], largest, tolerance);
  const auto channels = stats.read<float>(input + ".channel_amax");
  const auto means = stats.read<float>(input + ".channel_mean_abs");
  const auto groups = stats.read<float>(input + ".group_amax_32");
  const size_t num_groups = (n + 31) / 32;
  for (size_t i = 0; i < n; ++i) {
    ASSERT_NEAR(channels[expert * n + i], amax[i], tolerance);
    ASSERT_NEAR(means[expert * n + i], num_rows == 0 ? 0.0 : sum[i] / static_cast<double>(num_rows),
                tolerance);
  }
  for (size_t g = 0; g < num_groups; ++g) {
    const auto end = amax.begin() + static_cast<std::ptrdiff_t>(std::min(n, 32 * g + 32));
    EXPECT_NEAR(groups[expert * num_groups + g],
                *std::max_element(amax.begin() + static_cast<std::ptrdiff_t>(32 * g), end),
                tolerance);
  }
  const auto histogram = stats.read<int64_t>(input + ".histogram");
  int64_t counted = 0;
  for (size_t b = 0; b < 256; ++b)
    counted += histogram[expert * 256 + b];
  EXPECT_EQ(counted, static_cast<int64_t>(rows.size()));
  const auto hessian = stats.read<float>(input + ".hessian");
  const size_t base = shared_hessian ? 0 : expert * n * n;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      double h = 0.0;
      for (size_t r = 0; r < num_rows; ++r)
        h += static_cast<double>(rows[r * n + i]) * rows[r * n + j];
      ASSERT_NEAR(hessian[base + i * n + j], h,
                  1e-5 * largest * largest * static_cast<double>(num_rows + 1) + 1e-30)
          << input << " " << i << " " << j;
    }
  }
}

TEST_F(CalibrationTest, CollectsWhatEachExpertSees) {
  for (const std::string name : {"mixtral", "qwen3_moe-fused"}) {
    for (const bool route_all : {true, false}) {
      SCOPED_TRACE(name + (route_all ? " all" : " routed"));
      Captures captures(family(name));
      const MoeLayerSpec& spec = captures.model.config().layers[0];
      CalibrationSettings settings;
      settings.route_all = route_all;
      settings.hessians = true;
      settings.outputs = true;
      const fs::path out = directory_ / (name + (route_all ? "1" : "0"));
      fs::create_directories(out);
      const LayerCalibration layer =
          calibrate_layer(captures.model, spec.layer, captures.activations, settings, out);
      const ReferenceBlock& block = captures.reference.blocks.at(spec.layer);
      const auto h = static_cast<size_t>(spec.hidden_size);
      const size_t num_tokens = block.input.size() / h;

      // The routing of a forward call that the goldens have proven.
      LayerBatch batch{.hidden_states = block.input};
      FusedMoeOptions options;
      options.activations = ActivationDType::kF32;
      const RankResult run = run_layer_on_ranks(captures.model, spec.layer, {}, Placement::kLinear,
                                                {}, options, &batch)[0];
      EXPECT_EQ(layer.tokens_per_expert, run.tokens_per_expert);
      const StatsFile stats(out / calibration_file_name(spec.layer));
      EXPECT_EQ(stats.read<int64_t>("tokens_per_expert"), layer.tokens_per_expert);
      EXPECT_EQ(stats.read<int64_t>("samples_per_expert"), layer.samples_per_expert);
      EXPECT_LE(relative_error(stats.read<float>("output"), block.output), 1e-5);

      const MatrixReader reader(captures.model.checkpoint(), captures.model.config(),
                                captures.model.tensors());
      for (int e = 0; e < spec.num_experts; ++e) {
        if (route_all) {
          EXPECT_EQ(layer.samples_per_expert[static_cast<size_t>(e)],
                    static_cast<int64_t>(num_tokens));
          expect_statistics(stats, "gate_up", static_cast<size_t>(e), block.input, h, true);
          expect_statistics(stats, "down", static_cast<size_t>(e),
                            intermediate(reader, spec, e, block.input),
                            static_cast<size_t>(spec.intermediate_size), false);
          continue;
        }
        // The tokens are those for which a layer of this expert alone gives something: found by
        // routing each token by itself.
        std::vector<float> own;
        for (size_t t = 0; t < num_tokens; ++t) {
          const auto row = std::span(block.input).subspan(t * h, h);
          LayerBatch one{.hidden_states = row};
          if (run_layer_on_ranks(captures.model, spec.layer, {}, Placement::kLinear, {}, options,
                                 &one)[0]
                  .tokens_per_expert[static_cast<size_t>(e)] > 0) {
            own.insert(own.end(), row.begin(), row.end());
          }
        }
        EXPECT_EQ(own.size() / h,
                  static_cast<size_t>(layer.samples_per_expert[static_cast<size_t>(e)]));
        if (e > 1) continue;  // the loop above loads the layer for every token
        expect_statistics(stats, "gate_up", static_cast<size_t>(e), own, h, false);
        expect_statistics(stats, "down", static_cast<size_t>(e), intermediate(reader, spec, e, own),
                          static_cast<size_t>(spec.intermediate_size), false);
      }
    }
  }
}

std::string content(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST_F(CalibrationTest, BatchesOfExpertsAndThreadsChangeNoByte) {
  Captures captures(family("mixtral"));
  CalibrationSettings settings;
  settings.hessians = true;
  std::vector<std::string> files;
  for (const bool small : {false, true}) {
    const fs::path out = directory_ / (small ? "small" : "large");
    fs::create_directories(out);
    if (small) {
      settings.memory_bytes = 2 << 20;
      settings.threads.count = 3;
    }
    const LayerCalibration layer =
        calibrate_layer(captures.model, 1, captures.activations, settings, out);
    EXPECT_EQ(layer.num_batches > 1, small);
    files.push_back(content(out / calibration_file_name(1)));
  }
  EXPECT_EQ(files[0], files[1]);
}

TEST_F(CalibrationTest, EveryFamilyRunsAndItsOutputStaysTheRoutedOne) {
  int calibrated = 0;
  for (const Golden& golden : family_goldens()) {
    Captures captures(golden.directory);
    const MoeLayerSpec& spec = captures.model.config().layers.back();
    const auto block = captures.reference.blocks.find(spec.layer);
    if (block == captures.reference.blocks.end() || !block->second.has_shared) continue;
    CalibrationSettings settings;
    settings.route_all = !spec.router_weight_on_input;
    settings.outputs = true;
    const fs::path out = directory_ / golden.name;
    fs::create_directories(out);
    const LayerCalibration layer =
        calibrate_layer(captures.model, spec.layer, captures.activations, settings, out);
    EXPECT_TRUE(!settings.route_all || layer.uncalibrated().empty()) << golden.name;
    const StatsFile stats(out / calibration_file_name(spec.layer));
    EXPECT_LE(relative_error(stats.read<float>("output"), block->second.output), 1e-5)
        << golden.name;
    for (const std::string input : {"gate_up", "down"}) {
      const auto amax = stats.read<float>(input + ".amax");
      for (size_t e = 0; e < amax.size(); ++e)
        EXPECT_EQ(amax[e] > 0.0F, layer.samples_per_expert[e] > 0) << golden.name << " " << e;
      EXPECT_EQ(*std::max_element(amax.begin(), amax.end()),
                stats.read<float>(input + ".layer_amax")[0]);
    }
    ++calibrated;
  }
  EXPECT_GE(calibrated, 20);
}

TEST_F(CalibrationTest, ExpertsWithoutATokenAreNamed) {
  Captures captures(family("mixtral"));
  CalibrationSettings settings;
  settings.top_k = 1;
  const LayerCalibration layer =
      calibrate_layer(captures.model, 0, captures.activations, settings, directory_);
  int64_t sum = 0;
  for (const int64_t count : layer.tokens_per_expert)
    sum += count;
  EXPECT_EQ(sum, layer.num_tokens);  // one expert a token
  const StatsFile stats(directory_ / calibration_file_name(0));
  const auto amax = stats.read<float>("down.amax");
  for (const int e : layer.uncalibrated())
    EXPECT_EQ(amax[static_cast<size_t>(e)], 0.0F);
  EXPECT_FALSE(stats.has("down.hessian"));
}

TEST_F(CalibrationTest, ResumesAndRefusesOtherSettings) {
  Captures captures(family("mixtral"));
  CalibrationSettings settings;
  const LayerCalibration first =
      calibrate_layer(captures.model, 0, captures.activations, settings, directory_);
  EXPECT_FALSE(first.resumed);
  const auto written = fs::last_write_time(directory_ / calibration_file_name(0));
  const LayerCalibration second =
      calibrate_layer(captures.model, 0, captures.activations, settings, directory_);
  EXPECT_TRUE(second.resumed);
  EXPECT_EQ(second.samples_per_expert, first.samples_per_expert);
  EXPECT_EQ(fs::last_write_time(directory_ / calibration_file_name(0)), written);
  settings.route_all = true;
  try {
    calibrate_layer(captures.model, 0, captures.activations, settings, directory_);
    FAIL() << "took statistics of another routing";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("route_all"), std::string::npos) << error.what();
  }
}

TEST_F(CalibrationTest, RefusesWhatCannotBe) {
  Captures captures(family("mixtral"));
  CalibrationSettings settings;
  settings.memory_bytes = 1000;
  EXPECT_THROW(calibrate_layer(captures.model, 0, captures.activations, settings, directory_),
               Error);
  settings = {};
  settings.top_k = 99;
  EXPECT_THROW(calibrate_layer(captures.model, 0, captures.activations, settings, directory_),
               Error);
  settings = {};
  settings.groups = {0};
  EXPECT_THROW(calibrate_layer(captures.model, 0, captures.activations, settings, directory_),
               Error);
  EXPECT_TRUE(fs::is_empty(directory_));  // nothing is left behind

  const auto captured = [&](DType dtype, std::vector<int64_t> shape, float value) {
    const fs::path path = directory_ / "captured.safetensors";
    fs::remove(path);
    SafetensorsWriter writer(path, {{"model.layers.0.mlp.input", dtype, shape}}, {});
    const int64_t count = writer.tensors()[0].num_bytes() / 4;
    const std::vector<float> values(static_cast<size_t>(count), value);
    writer.write("model.layers.0.mlp.input", 0, std::as_bytes(std::span(values)));
    writer.finish();
    return std::vector<fs::path>{path};
  };
  const int64_t h = captures.model.config().layers[0].hidden_size;
  const MoeModelConfig& config = captures.model.config();
  EXPECT_EQ(ActivationFiles(captured(DType::kF32, {2, 3, h}, 1.0F), config).num_tokens(0), 6);
  EXPECT_THROW(ActivationFiles(captured(DType::kF32, {2, h + 1}, 1.0F), config), Error);
  EXPECT_THROW(ActivationFiles(captured(DType::kI32, {2, h}, 1.0F), config), Error);
  const ActivationFiles nan(captured(DType::kF32, {2, h}, std::numeric_limits<float>::quiet_NaN()),
                            config);
  EXPECT_THROW(calibrate_layer(captures.model, 0, nan, {}, directory_), Error);
  const ActivationFiles none(captured(DType::kF32, {0, h}, 1.0F), config);
  const LayerCalibration empty = calibrate_layer(captures.model, 0, none, {}, directory_);
  EXPECT_EQ(empty.uncalibrated().size(), static_cast<size_t>(config.layers[0].num_experts));
}

TEST(InputStatisticsTest, BinsAreHalfOctaves) {
  EXPECT_EQ(InputStatistics::bin_of(1.0F), 128u);
  EXPECT_EQ(InputStatistics::bin_of(1.49F), 128u);
  EXPECT_EQ(InputStatistics::bin_of(-1.5F), 129u);
  EXPECT_EQ(InputStatistics::bin_of(2.0F), 130u);
  EXPECT_EQ(InputStatistics::bin_of(0.5F), 126u);
  EXPECT_EQ(InputStatistics::bin_of(0.0F), 0u);
  EXPECT_EQ(InputStatistics::bin_of(1e38F), 255u);
  EXPECT_EQ(InputStatistics::bin_of(1e-38F), 0u);
}

}  // namespace
}  // namespace gantry::test
