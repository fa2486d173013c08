#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "loader/checkpoint.h"
#include "loader/layer_weights.h"
#include "loader/load_plan.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "loader/slot_pool.h"
#include "loader/tensor_map.h"

namespace gantry GANTRY_API {

struct LoadOptions {
  Threads threads;
  /// Staging memory of each reader. The loader never holds more than threads * this besides what it
  /// owns (one file row if that is larger).
  int64_t staging_bytes = int64_t{1} << 20;
  /// Weights are for a GPU: what its kernels cannot read is decoded to f32.
  bool gpu = false;
  /// Where slots get their memory, and return it to when their layer is gone; null: fresh memory.
  std::shared_ptr<SlotPool> slot_pool{};
  bool check_finite = true;  ///< NaN and infinity among weights, and senseless scales, are findings
  /// Kinds that become warnings in the report that load_layer is given: see LoadReport::allow.
  std::vector<FindingKind> allow;
  /// Called from reader threads with the bytes just read. May be empty.
  std::function<void(int64_t bytes)> progress;
};

struct LoadStats {
  int64_t bytes_read = 0;   ///< from files
  int64_t bytes_owned = 0;  ///< of slots, shared experts and small tensors
  double seconds = 0.0;

  LoadStats& operator+=(const LoadStats& other) noexcept {
    bytes_read += other.bytes_read;
    bytes_owned += other.bytes_owned;
    seconds += other.seconds;
    return *this;
  }
};

/// Reads what a rank owns of MoE layers from a checkpoint into expert slots.
///
/// The checkpoint, config and tensor map must outlive the loader. Loading is possible only if the
/// map was built without findings. Several loaders may work on one checkpoint at once.
class WeightLoader {
 public:
  WeightLoader(const Checkpoint& checkpoint, const MoeModelConfig& config, const TensorMap& tensors)
      : checkpoint_(&checkpoint), config_(&config), tensors_(&tensors) {}

  /// Loads one layer. Findings (bytes not written exactly once, NaN, infinity, ids out of range) go
  /// to `report`; the caller decides what to do with weights that have some.
  /// @throws Error kIo if bytes cannot be read
  /// @throws Error kInvalidArgument if the layer is not a MoE layer or tp_size > intermediate size
  MoeLayerWeights load_layer(int layer, const ParallelConfig& parallel, const ExpertMap& experts,
                             const LoadOptions& options, LoadReport& report,
                             LoadStats& stats) const;

  /// The reads that load_layer would make, without making them.
  [[nodiscard]] LoadPlan plan(int layer, const ParallelConfig& parallel,
                              const ExpertMap& experts) const;

 private:
  /// Layouts of a rank's slots, and their memory.
  /// @param options null: no memory, for a CPU
  /// @param destination everything in it is set, to be planned with
  [[nodiscard]] MoeLayerWeights allocate(const MoeLayerSpec& spec, const ParallelConfig& parallel,
                                         const ExpertMap& experts, const LoadOptions* options,
                                         LoadDestination& destination) const;
  /// Experts keep their dtype or their codes; what kernels have no format for is decoded to f32,
  /// which the log says.
  void set_expert_layout(MoeLayerWeights& weights, const LayerTensors& tensors, bool gpu,
                         LoadDestination& destination) const;
  void set_shared_layout(MoeLayerWeights& weights, const LayerTensors& tensors, bool gpu,
                         LoadDestination& destination) const;
  void load_small_tensors(MoeLayerWeights& weights, const LoadOptions& options, LoadReport& report,
                          LoadStats& stats) const;

  const Checkpoint* checkpoint_;
  const MoeModelConfig* config_;
  const TensorMap* tensors_;
};

/// Why a TP x EP split of a layer is not possible, or empty if it is.
std::string infeasible_reason(const MoeLayerSpec& layer, int tp_size, int ep_size);

}  // namespace gantry
