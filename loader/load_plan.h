#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "loader/expert_slot.h"
#include "loader/input_scale_job.h"
#include "loader/load_ledger.h"
#include "loader/tensor_geometry.h"
#include "loader/tensor_map.h"
#include "parallel/expert_map.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// A strided piece of a tensor and where it goes. "Outer" counts the file's rows, "inner" the
/// elements of one row, both within the expert's slab of the tensor.
struct PlannedCopy {
  int64_t outer_begin = 0;
  int64_t outer_step = 1;
  int64_t outer_count = 0;
  int64_t inner_begin = 0;
  int64_t inner_step = 1;
  int64_t inner_count = 0;
  bool outer_is_row = true;          ///< file rows are rows of the destination; else its columns
  std::byte* destination = nullptr;  ///< null in plans without memory (inspect, verify)
  int64_t destination_row = 0;       ///< row (element of a bias) that the first one goes to
  DType destination_dtype = DType::kBF16;
  std::optional<PackedLayout> panels;  ///< how a weight is packed; none for a bias
  int64_t ledger_id = -1;
};

/// Everything that is read from one expert's slab of one tensor.
struct ReadJob {
  const TensorSource* source = nullptr;
  int expert = -1;
  int64_t slab_offset = 0;  ///< elements from the tensor's start
  int64_t slab_rows = 0;
  int64_t slab_cols = 0;
  std::vector<PlannedCopy> copies;
};

/// A run of file rows of a job's slab.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};

/// The rows that a job's copies need, merged and ascending.
std::vector<RowRange> rows_to_read(const ReadJob& job);

/// Bytes that a job reads: whole file rows.
int64_t bytes_to_read(const ReadJob& job);

struct EncodedJob;
struct LayerTransforms;
struct TransformJob;

/// What a rank reads of one layer, in file order.
struct LoadPlan {
  LoadPlan();
  LoadPlan(LoadPlan&& other) noexcept;
  LoadPlan& operator=(LoadPlan&& other) noexcept;
  LoadPlan(const LoadPlan&) = delete;
  LoadPlan& operator=(const LoadPlan&) = delete;
  ~LoadPlan();

  std::vector<ReadJob> jobs;
  std::vector<EncodedJob> encoded_jobs;  ///< quantized matrices
  std::vector<InputScaleJob> input_scale_jobs;
  std::vector<TransformJob> transform_jobs;
  std::shared_ptr<const LayerTransforms> transforms;  ///< that jobs point to
  int64_t bytes_read = 0;
  int64_t bytes_owned = 0;  ///< bytes of all destinations
};

/// Where a plan's reads go: slots of routed experts, and one slot of shared experts. Null memory
/// gives a plan that can be counted but not executed.
struct LoadDestination {
  SlotLayout layout;
  ActivationScheme activations;
  std::byte* slots = nullptr;
  int64_t cut_unit = 1;                               ///< see MoeLayerWeights
  std::shared_ptr<const LayerTransforms> transforms;  ///< of quantized experts, or null
  WeightFormat whole_w2;  ///< format of w2 before it is cut, where experts are coded
  SlotLayout shared_layout;
  int64_t shared_cut_unit = 1;
  WeightFormat shared_whole_w2;
  std::byte* shared = nullptr;  ///< where the rank computes shared experts
  bool loads_shared = false;
};

/// Plans the reads of one rank for the experts of one layer.
/// @param tensors complete and of the right shapes (see TensorMap::build)
LoadPlan plan_layer(const MoeLayerSpec& layer, const FamilySpec& family,
                    const LayerTensors& tensors, const ParallelConfig& parallel,
                    const ExpertMap& experts, const LoadDestination& destination,
                    LoadLedger& ledger);

}  // namespace gantry
