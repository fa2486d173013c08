#pragma once

// One layer of a checkpoint on several in-process ranks, whose experts are to move.

#include <gtest/gtest.h>

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
