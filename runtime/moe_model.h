#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "loader/weight_loader.h"
#include "parallel/expert_placement.h"
#include "runtime/device_moe_layer.h"
#include "runtime/fused_moe_layer.h"

namespace gantry GANTRY_API {

/// An opened model: checkpoint, config and tensor map together.
class MoeModel {
 public:
  /// Opens a directory; problems of names, shapes and dtypes are in `report()`.
  /// @throws Error as Checkpoint::open and read_moe_config do; kUnsupported if it is quantized
  MoeModel(const std::filesystem::path& directory, bool names_only);

  [[nodiscard]] const Checkpoint& checkpoint() const noexcept { return *checkpoint_; }
  [[nodiscard]] const MoeModelConfig& config() const noexcept { return *config_; }
  [[nodiscard]] const TensorMap& tensors() const noexcept { return *tensors_; }
  [[nodiscard]] LoadReport& report() noexcept { return *report_; }

 private:
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<MoeModelConfig> config_;
  std::unique_ptr<LoadReport> report_;
  std::unique_ptr<TensorMap> tensors_;
};

/// What one rank did with one layer.
struct RankResult {
  LoadStats load;
  ForwardTimes times;
  std::vector<int64_t> tokens_per_expert;
  ExchangeBytes moved;     ///< by one forward call
  std::vector<float> out;  // [T of the rank's token group (sequence parallel: of the rank), H]
};

/// A batch for one layer, whole: each rank takes its token group's part.
struct LayerBatch {
  std::span<const float> hidden_states{};         // [T, H]
  std::span<const int32_t> token_ids{};           // [T] or empty
  std::span<const float> router_hidden_states{};  // [T, H] or empty: the same as hidden_states
};

/// Who the ranks are, and who wants to know what they do.
struct RankSetup {
  /// This process' rank, where ranks are processes; null: ranks are threads of this process.
  Communicator* world = nullptr;
  /// Called with "load" or "forward" and the layer when a rank begins with that; with threads for
  /// ranks, from each of them. May be empty.
  std::function<void(const char* phase, int layer)> on_phase;
  /// The GPU that runs this process' ranks, with bf16 activations; null: the CPU. Times are then
  /// those of whole calls, with the copies of the batch in and out.
  std::shared_ptr<Device> device{};
  DeviceMoeOptions device_options{};
  /// What moves memory of `device` over the ranks of `world`; called by every rank for every layer.
  /// Empty: staged in the host's memory.
  std::function<std::shared_ptr<DeviceCommunicator>(Communicator& world)> make_device_world{};
};

/// Loads one layer on every rank of `parallel` and, where there is a batch, runs it `repeat` times
/// (the times are those of the median). Findings go to the model's report; ranks do not run a layer
/// that has some. Where ranks are processes, this is collective, and each gets the findings and
/// results of all.
/// @return one result a rank
std::vector<RankResult> run_layer_on_ranks(MoeModel& model, int layer,
                                           const ParallelConfig& parallel,
                                           const ExpertPlacement& placement,
                                           const LoadOptions& load_options,
                                           const FusedMoeOptions& options, const LayerBatch* batch,
                                           int repeat = 1, const RankSetup& ranks = {});

/// The whole output [T, H] from the ranks that lead their token groups; of sequence parallel ranks,
/// from all of them.
/// @param no_reduce the outputs are parts (FusedMoeOptions::no_reduce): they are added in rank
/// order
std::vector<float> gather_outputs(const std::vector<RankResult>& results,
                                  const ParallelConfig& parallel, bool no_reduce = false);

}  // namespace gantry
