#pragma once

// What the tests of `gantry quantize` share.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/base/log.h"
#include "loader/expected_tensors.h"
#include "loader/matrix_reader.h"
#include "loader/safetensors_writer.h"
#include "runtime/moe_model.h"
#include "runtime/verification.h"
#include "tests/support/expect_error.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/temp_dir.h"
#include "tools/quantize_run.h"

namespace gantry::test {

using std::filesystem::path;

struct Quantized {
  TempDir dir;
  path out;
  cli::QuantizeResult result;
};

inline std::unique_ptr<Quantized> quantize(const path& source, const cli::QuantizeRequest& request,
                                           const path& stats = {}, int64_t shard_bytes = 0,
                                           cli::StatsHessians* hessians = nullptr) {
  auto done = std::make_unique<Quantized>();
  done->out = done->dir / "out";
  MoeModel model(source, /*names_only=*/false);
  EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
  const cli::QuantizePlan plan = cli::plan_quantize(model, request);
  cli::QuantizeRun run;
  run.directory = done->out;
  run.shard_bytes = shard_bytes;
  run.memory_bytes = int64_t{1} << 30;
  run.fingerprint = "test";
  run.threads.count = 2;
  run.hessians = hessians;
  if (!stats.empty()) run.ranges = cli::InputRanges::read(stats, model.config());
  done->result = cli::run_quantize(model, plan, run);
  return done;
}

inline path source_dir(const char* name) { return golden_root() / "sources" / name; }

// The matrices of routed experts in f32, [layer, expert, part] in order.
inline std::vector<std::vector<float>> expert_matrices(const path& directory) {
  MoeModel model(directory, /*names_only=*/false);
  EXPECT_TRUE(model.report().ok()) << summarize(model.report(), 10);
  const MatrixReader reader(model.checkpoint(), model.config(), model.tensors());
  std::vector<std::vector<float>> matrices;
  for (const MoeLayerSpec& spec : model.config().layers) {
    for (int e = 0; e < spec.num_experts; ++e) {
      for (const Part part : kExpertParts) {
        if (part == Part::kW3 && !spec.gated()) continue;
        matrices.push_back(reader.read(spec.layer, e, part));
      }
    }
  }
  return matrices;
}

/// Warnings, while it lives.
class CapturedLog {
 public:
  CapturedLog() {
    set_log_sink([this](LogLevel level, std::string_view message) {
      const std::scoped_lock lock(mutex_);
      if (level == LogLevel::kWarn) warnings_ += std::string(message) + "\n";
    });
  }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;
  ~CapturedLog() { set_log_sink({}); }
  [[nodiscard]] const std::string& warnings() const { return warnings_; }

 private:
  std::mutex mutex_;
  std::string warnings_;
};

inline std::string readable(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

}  // namespace gantry::test
