#pragma once

// One layer of a checkpoint on several in-process ranks, whose experts are to move.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/moe_model.h"
#include "runtime/rebalance.h"
#include "tests/support/golden_dirs.h"
#include "tests/support/random_maps.h"

namespace gantry::test {

/// Loads the first MoE layer of a golden for any rank and map.
class RebalanceCase {
 public:
  explicit RebalanceCase(const std::filesystem::path& directory)
      : model_(directory, /*names_only=*/false), layer_(model_.config().layers[0].layer) {}

  [[nodiscard]] const MoeLayerSpec& spec() { return *model_.config().find_layer(layer_); }

  [[nodiscard]] MoeLayerWeights load(const ParallelConfig& parallel, const ExpertMap& map) {
    const WeightLoader loader(model_.checkpoint(), model_.config(), model_.tensors());
    LoadOptions options;
    options.threads.count = 1;
    LoadReport report;
    LoadStats stats;
    MoeLayerWeights weights = loader.load_layer(layer_, parallel, map, options, report, stats);
    EXPECT_TRUE(report.ok()) << summarize(report, 3);
    return weights;
  }

  [[nodiscard]] std::unique_ptr<FusedMoeLayer> make_layer(const ParallelConfig& parallel,
                                                          const ExpertMap& map,
                                                          Communicator* world) {
    FusedMoeOptions options;
    options.activations = ActivationDType::kF32;
    options.batch_invariant = true;
    options.threads.count = 1;
    return std::make_unique<FusedMoeLayer>(load(parallel, map), map, options, world);
  }

 private:
  MoeModel model_;
  int layer_;
};

/// "" or the first slot of a rank that does not hold the bytes of a fresh load with `map`.
inline std::string differing_slot(const MoeLayerWeights& found, const MoeLayerWeights& fresh) {
  if (found.num_slots != fresh.num_slots) return "number of slots";
  if (!(found.layout == fresh.layout)) return "layout";
  const int64_t stride = fresh.layout.stride_bytes;
  for (int64_t slot = 0; slot < fresh.num_slots; ++slot) {
    if (std::memcmp(found.slots.data() + slot * stride, fresh.slots.data() + slot * stride,
                    static_cast<size_t>(stride)) != 0) {
      return "slot " + std::to_string(slot);
    }
  }
  return "";
}

/// `parallel` as the ranks of `world` see it.
inline ParallelConfig of_rank(ParallelConfig parallel, const Communicator& world) {
  parallel.rank = world.rank();
  return parallel;
}

/// ||a - b|| / ||b||
inline double relative_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0;
  double norm = 1e-300;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

/// A small bf16 layer with random tokens.
class RebalanceTest : public testing::Test {
 protected:
  RebalanceTest() : layer_case_(golden_root() / "families" / "qwen3_moe") {}

  std::vector<float> forward(const FusedMoeLayer& layer, const std::vector<float>& x) {
    Workspace workspace = layer.make_workspace(16);
    std::vector<float> out(x.size());
    layer.forward({.hidden_states = x}, workspace, out);
    return out;
  }

  RebalanceCase layer_case_;
  const int num_experts_ = layer_case_.spec().num_experts;
  const ParallelConfig four_{.ep_size = 4};
  SeededRng rng_;
  const std::vector<float> x_ =
      rng_.normals(static_cast<size_t>(11 * layer_case_.spec().hidden_size));
};

/// Passes everything on to another communicator; tests change single calls.
class WrappedCommunicator : public Communicator {
 public:
  explicit WrappedCommunicator(Communicator& inner) : inner_(&inner) {}
  [[nodiscard]] int rank() const noexcept override { return inner_->rank(); }
  [[nodiscard]] int size() const noexcept override { return inner_->size(); }

 protected:
  void exchange(const Operation& /*operation*/, std::span<const SendPart> sends,
                std::span<const ReceivePart> receives) override {
    inner_->send_receive(sends, receives);
  }
  void wake_all(const char* reason, ErrorCode code) noexcept override {
    inner_->abort(reason, code);
  }

 private:
  Communicator* inner_;
};

}  // namespace gantry::test
