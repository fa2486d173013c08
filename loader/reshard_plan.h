#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint.h"
#include "loader/checkpoint_writer.h"
#include "loader/moe_config.h"
#include "loader/relayout_plan.h"
#include "loader/tensor_map.h"
#include "parallel/expert_map.h"
#include "parallel/expert_placement.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// Every tensor as it is: for another cut into files. Works for any safetensors checkpoint.
/// @throws Error kUnsupported for GGUF
RelayoutPlan plan_copy(const Checkpoint& checkpoint);

/// Cuts the tensors of a plan_copy into files by expert parallel rank: each rank's experts have
/// files of their own (model-ep-00001-of-00004-....safetensors), everything else common ones. The
/// result is the same checkpoint for every reader; a rank needs to open only its files.
/// @throws Error kUnsupported naming the tensor if experts of several ranks share one
std::vector<ShardPlan> shards_by_rank(const RelayoutPlan& plan, const MoeModelConfig& config,
                                      const TensorMap& map, int ep_size,
                                      const ExpertPlacement& placement, int64_t shard_bytes);

/// What one rank of TP x EP needs: its experts (ids in names stay logical; in stacked tensors they
/// follow each other in slot order), cut for tensor parallelism like the loader cuts them: rows of
/// w1 and w3, columns of w2, those of shared experts likewise, with their scales, zero points and
/// group indices. The bias of w2 and everything that is not an expert's stays whole.
/// @throws Error kUnsupported naming the tensor where a quantized matrix cannot be cut without
///         changing what its weights are (see cut_encoded; TP 1 is always possible); kIo
RelayoutPlan plan_rank(const Checkpoint& checkpoint, const MoeModelConfig& config,
                       const TensorMap& map, const ParallelConfig& parallel,
                       const ExpertPlacement& placement);

/// What a rank's files say about themselves in "__metadata__".
std::map<std::string, std::string> rank_metadata(const ParallelConfig& parallel,
                                                 const ExpertPlacement& placement);

}  // namespace gantry
