#pragma once

#include <cstdint>
#include <vector>

#include "loader/checkpoint.h"
#include "loader/encoded_reader.h"
#include "loader/expert_formats.h"
#include "loader/expert_slot.h"
#include "loader/load_ledger.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "loader/tensor_map.h"
#include "loader/weight_loader.h"
#include "parallel/parallel_config.h"

namespace gantry {

/// One quantized matrix of one expert (-1: of the shared experts): read, brought into the slot's
/// format (codes and scales, or f32) and packed into every slot that holds it. Internal.
struct EncodedJob {
  int expert = -1;
  Part part = Part::kW1;
  Slice out;  ///< rows that this rank owns
  Slice in;   ///< columns
  /// The matrix' rows and columns in the order that slots have them, if that is another one than
  /// the file's: `out` and `in` then count in it.
  const std::vector<int32_t>* row_order = nullptr;
  const std::vector<int32_t>* column_order = nullptr;
  SlotTarget target;
  WeightFormat format;  ///< of the whole matrix in coded slots, which others may have widened
  struct Destination {
    std::byte* slot = nullptr;  ///< null in plans without memory
    int64_t ledger_id = -1;
  };
  std::vector<Destination> destinations;
};

/// Where gate and up share a tensor, a block of scales must not reach from one into the other.
/// @throws Error kUnsupported naming the tensor
void check_no_shared_blocks(const QuantScheme& scheme, const TensorSource& source,
                            const FamilySpec& family, const MatrixSize& size);

/// A multiplier of the projection's input (pre_quant_scale) is one of the matrix' columns.
/// @throws Error kFormat if it has another shape than [in]
void fold_input_scale(const EncodedMatrix& matrix, std::vector<float>& decoded);

/// Reads into `scratch`, decodes and packs. What is wrong with the tensors becomes a finding.
/// @return bytes read
int64_t run_encoded_job(const Checkpoint& checkpoint, const MoeModelConfig& config,
                        const MoeLayerSpec& layer, const LayerTensors& tensors,
                        const EncodedJob& job, const LoadOptions& options, ReadScratch& scratch,
                        LoadLedger& ledger, LoadReport& report);

}  // namespace gantry
