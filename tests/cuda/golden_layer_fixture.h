#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "loader/weight_loader.h"
#include "runtime/device_moe_layer.h"
#include "runtime/moe_model.h"
#include "tests/support/device_array.h"
#include "tests/support/golden_dirs.h"

namespace gantry::test {

/// The first MoE layer of a golden family, loaded part by part for ranks with devices. Skipped like
/// every DeviceTest; then `model` is empty.
class GoldenLayerTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (!IsSkipped()) open("qwen3_next");  // shared experts with a gate
  }

  void open(const std::string& family) {
    model.emplace(golden_root() / "families" / family, /*names_only=*/false);
    spec = model->config().layers.front();
  }

  /// What one rank owns.
  MoeLayerWeights load(const ParallelConfig& config, const ExpertMap& experts) {
    const WeightLoader loader(model->checkpoint(), model->config(), model->tensors());
    LoadStats stats;
    LoadReport report;
    LoadOptions options;
    options.threads.count = 1;
    MoeLayerWeights weights =
        loader.load_layer(spec.layer, config, experts, options, report, stats);
    EXPECT_TRUE(report.ok()) << summarize(report, 5);
    return weights;
  }

  /// One thread, bits that do not depend on the batch.
  static DeviceMoeOptions exact_options(const ExchangeOptions& exchange = {}) {
    DeviceMoeOptions options;
    options.threads.count = 1;
    options.batch_invariant = true;
    options.exchange = exchange;
    return options;
  }

  std::optional<MoeModel> model;
  MoeLayerSpec spec;
};

}  // namespace gantry::test
