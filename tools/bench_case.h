#pragma once

// The layers and the batches that `gantry bench` times.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/parallel_for.h"
#include "loader/layer_weights.h"
#include "loader/load_report.h"
#include "loader/placement_file.h"
#include "runtime/fused_moe_layer.h"
#include "tools/activation_option.h"

namespace gantry::cli {

/// Layers whose experts are timed, with the name that the table shows.
struct BenchModel {
  std::string shape;
  std::string format;  ///< of the weights: "bf16"
  ActivationChoice activations;
  std::vector<std::unique_ptr<FusedMoeLayer>> layers;
};

/// The rank whose part of the layers is made or loaded; by default all of them on one rank. With
/// several ranks `min_bytes` are counted in bf16 over all of them, so that each has the same
/// layers.
struct BenchRank {
  ParallelConfig config{};
  ExpertPlacement placement;
  Communicator* world = nullptr;
  bool gpu = false;  ///< loaded weights are for one: in formats that it reads
};

/// The MoE layer and the experts of a known shape: what a placement file for it counts.
/// @throws Error kInvalidArgument for a name that does not exist
PlacedModel bench_shape_model(std::string_view shape);

/// Makes up layers of a known shape in memory (`tools/synth_shapes.h`), as many as give `min_bytes`
/// of experts, each placed as the shape's MoE layer.
/// @param activations as --activations has it; replaces that of `options`
/// @throws Error kInvalidArgument for a name or a format that does not exist
BenchModel make_bench_model(std::string_view shape, std::string_view format, int64_t min_bytes,
                            FusedMoeOptions options, const std::string& activations, uint64_t seed,
                            const BenchRank& rank = {});

/// Loads MoE layers of a checkpoint, the first ones until `min_bytes` are there.
/// @throws Error kFormat if the checkpoint has findings other than of the kinds in `allow`
BenchModel load_bench_model(const std::string& directory, int64_t min_bytes,
                            FusedMoeOptions options, const std::string& activations,
                            const std::vector<FindingKind>& allow, const BenchRank& rank = {});

/// Bytes of one expert: what the checkpoint has or what is packed, whichever is less.
int64_t expert_bytes(const MoeLayerWeights& weights) noexcept;

/// One batch with external routing for one of the layers.
struct BenchBatch {
  size_t layer = 0;
  std::vector<float> hidden_states;  // [T, H]
  std::vector<int32_t> topk_ids;     // [T, K]
  std::vector<float> topk_weights;   // [T, K]
  int64_t touched_experts = 0;
};

enum class BenchRouting : uint8_t {
  kUniform,  ///< every set of K experts is as likely
  kZipf,     ///< the r-th expert of a random order has weight 1 / r
};

std::string_view to_string(BenchRouting routing) noexcept;

/// Batches over all layers in turn, until `min_bytes` of different experts are touched or every
/// expert is, at least 2 and at most 512.
std::vector<BenchBatch> make_batches(const BenchModel& model, int64_t num_tokens,
                                     BenchRouting routing, int64_t min_bytes, uint64_t seed);

/// max |y - reference| / max |reference| over the first rows of a batch, in double, of the
/// unrounded formula: the field rel_err of the peers' script.
double output_error(const FusedMoeLayer& layer, const BenchBatch& batch,
                    const std::vector<float>& out, int64_t rows);

}  // namespace gantry::cli
