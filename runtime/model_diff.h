#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "runtime/difference.h"
#include "runtime/moe_model.h"

namespace gantry GANTRY_API {

/// What is compared, and when a difference is too large.
struct DiffSettings {
  /// Largest ||B - A|| / ||A|| of a matrix. Rounding to 2 bits stays below 0.4; weights that have
  /// nothing to do with each other differ by 1.4 (equal norms), an exchange of gate and up too.
  double max_relative = 0.5;
  double min_snr_db = -std::numeric_limits<double>::infinity();  ///< the same limit in dB
  /// Largest ||B - A|| / ||A|| of a layer's output, where layers are run.
  double max_output_relative = std::numeric_limits<double>::infinity();
  int64_t num_tokens = 64;  ///< of random hidden states; 0: layers are not run
  uint64_t seed = 1;        ///< of the random hidden states, N(0, 1)
  /// Hidden states to run instead, [T, H] by layer; layers without some run random ones.
  std::map<int, std::vector<float>> hidden_states;
  std::vector<int32_t> token_ids;  ///< [T] with hidden_states, for hash routing
  /// B was smoothed before it was quantized (AWQ, SmoothQuant), its scales folded: the norm in
  /// front of the block took the inverse of the columns of w1 and w3, rows of w3 that of the
  /// columns of w2. Both are taken out before comparing: the norm's by its ratio to A's, the rows'
  /// and columns' of w3 and w2 by least squares.
  bool smoothed = false;
  int first_layer = 0;
  int last_layer = std::numeric_limits<int>::max();
  Threads threads;

  [[nodiscard]] bool too_large(const Difference& difference) const noexcept {
    return !(difference.relative() <= max_relative && difference.snr_db() >= min_snr_db);
  }
};

/// One matrix of an expert (-1: of the shared experts), with its bias.
struct MatrixDifference {
  int layer = -1;
  int expert = -1;
  Part part = Part::kW1;
  std::string name_a;  ///< of a tensor that holds it
  std::string name_b;
  Difference weight;
  std::optional<Difference> bias;
  bool too_large = false;
};

/// Where a matrix of B that differs too much comes from.
struct MatrixOrigin {
  int layer = -1;
  int expert = -1;  ///< of B
  Part part = Part::kW1;
  bool found = false;    ///< some matrix of A's layer is like it
  int from_expert = -1;  ///< of A
  Part from_part = Part::kW1;
  Difference weight;  ///< from that one
};

/// Any other tensor.
struct TensorDifference {
  std::string name_a;
  std::string name_b;
  int layer = -1;  ///< of a MoE layer's tensor (router ...), else -1
  Difference values;
  bool too_large = false;
};

/// A layer's output on the same hidden states, every weight in f32, each with its own routing.
struct OutputDifference {
  int layer = -1;
  int64_t num_tokens = 0;
  Difference output;
  bool too_large = false;
};

/// One MoE layer.
struct LayerDifference {
  int layer = -1;
  std::vector<MatrixDifference> matrices;  ///< by expert, then w1, w3, w2; shared experts last
  std::vector<TensorDifference> tensors;
  std::vector<MatrixOrigin> origins;  ///< one for each routed matrix that differs too much
  std::optional<OutputDifference> output;

  /// Of the whole layer: all its experts' weights of one part together.
  [[nodiscard]] Difference total(Part part) const;
  [[nodiscard]] int64_t num_too_large() const noexcept;
};

/// What belongs to no MoE layer.
struct ModelTensorDifference {
  std::vector<TensorDifference> tensors;
  std::vector<std::string> only_in_a;
  std::vector<std::string> only_in_b;
  std::vector<std::string> not_compared;  ///< name and reason
};

/// Whether two checkpoints can be compared: the same MoE layers with the same sizes.
/// @throws Error kFormat naming the layer and what differs
void require_comparable(const MoeModel& a, const MoeModel& b);

/// Compares one layer, expert by expert: each thread holds one matrix of either model, besides a
/// sample of 2048 elements of every matrix of the layer. Then, where settings ask for it, loads and
/// runs the layer, first of a, then of b.
///
/// Matrices that differ too much are looked for among all experts and projections of a: their
/// samples are correlated (a sample of unrelated weights correlates by 2048^-0.5 = 0.02, limit
/// 0.5), and the best one is compared whole.
///
/// @param a, b opened without findings, comparable
/// @throws Error kFormat, kUnsupported naming a tensor that cannot be read; kIo
LayerDifference diff_layer(MoeModel& a, MoeModel& b, int layer, const DiffSettings& settings);

/// Compares the tensors that stand in no MoE layer, by their names without the model's prefix.
/// Linear layers that only one model quantizes are dequantized. A list names what only one has.
ModelTensorDifference diff_model_tensors(const MoeModel& a, const MoeModel& b,
                                         const DiffSettings& settings);

}  // namespace gantry
