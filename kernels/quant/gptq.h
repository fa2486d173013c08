#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"

namespace gantry GANTRY_API {

/// The scale (and zero point) of one group of weights of one row, in a format's own terms.
struct GptqScale {
  float stored = 1.0F;  ///< as a file has it
  float step = 1.0F;    ///< the difference of two codes' values, with a second-level scale
  uint8_t zero = 0;     ///< the code of 0, of formats that have one
};

/// A format that GPTQ rounds to. Implementations must be safe to call from several threads.
class GptqGrid {
 public:
  GptqGrid() = default;
  GptqGrid(const GptqGrid&) = delete;
  GptqGrid& operator=(const GptqGrid&) = delete;
  virtual ~GptqGrid() = default;

  /// Chooses the scale of a group from its weights, which are finite.
  [[nodiscard]] virtual GptqScale choose(std::span<const float> weights) const = 0;
  /// Rounds `count` weights, each with its own scale: codes, and what they are worth.
  virtual void round(int64_t count, const float* weights, const GptqScale* scales, uint8_t* codes,
                     float* values) const = 0;
};

/// In which order columns are rounded.
enum class GptqOrder : uint8_t {
  kInOrder,
  /// By descending diagonal of the Hessian ("act-order"): columns that matter most are rounded
  /// first, while the others can still make up for their errors.
  kByActivation,
};

struct GptqSettings {
  /// Added to the diagonal, as a share of its mean.
  double damping = 0.01;
  GptqOrder order = GptqOrder::kInOrder;
};

/// What the solver needs of a Hessian: made once, used for every matrix with the same input (gate
/// and up; with all tokens sent to all experts, those of all experts).
///
/// With H' = H + damping * mean(diag H) * I, permuted, it is the upper triangular U of
/// U^T U = H'^-1. A column whose diagonal is 0 (no token ever reached it) is left to itself: its
/// weights are rounded to nearest. If H' is not positive definite in f32, damping is raised tenfold
/// (up to 1, logged).
///
/// Holds about 2 n^2 bytes; making it takes 4 n^2 * 3 bytes and 2/3 n^3 multiplications. Immutable
/// afterwards: any thread may use it.
class GptqHessian {
 public:
  /// @param hessian [n, n] f32, symmetric: sum of x x^T over samples, times any factor
  /// @throws Error kInvalidArgument for sizes that do not fit, values that are not finite, a
  ///         negative diagonal, or damping outside (0, 1]
  /// @throws Error kInvalidArgument if damping of 1 does not make it positive definite
  GptqHessian(std::span<const float> hessian, int64_t n, const GptqSettings& settings,
              const Threads& threads, IsaSet isas = host_isas());

  [[nodiscard]] int64_t size() const noexcept { return n_; }
  /// What was added to the diagonal in the end, as a share of its mean.
  [[nodiscard]] double damping() const noexcept { return damping_; }
  /// Columns in the order in which they are rounded.
  [[nodiscard]] std::span<const int32_t> order() const noexcept { return order_; }
  [[nodiscard]] bool in_order() const noexcept { return in_order_; }
  /// Columns that no sample reached.
  [[nodiscard]] int64_t num_dead() const noexcept { return num_dead_; }
  /// U[i, j] of the permuted matrix, j >= i.
  [[nodiscard]] float factor(int64_t i, int64_t j) const noexcept;

 private:
  friend class GptqSolver;
  bool factorize(std::span<const float> hessian, const Threads& threads, IsaSet isas);
  [[nodiscard]] static int64_t panel_offset(int64_t panel) noexcept {
    return panel * (panel - 1) / 2 * 1024;  // sum over q < panel of 32 q * 32
  }

  int64_t n_ = 0;
  int64_t padded_ = 0;
  double damping_ = 0.0;
  int64_t num_dead_ = 0;
  bool in_order_ = true;
  std::vector<int32_t> order_;
  /// Panel p: rows 0 .. 32 p - 1 of U's columns 32 p .. 32 p + 31, [32 p, 32].
  Buffer<float> panels_;
  /// [panels, 32, 32]: the triangles on the diagonal; zero below it.
  Buffer<float> triangles_;
};

/// A quantized matrix W[out, in] as the solver gives it; packing is the exporter's.
struct GptqMatrix {
  std::vector<uint8_t> codes;     ///< [out, in], in the matrix' own column order
  std::vector<GptqScale> scales;  ///< [out, groups]
  /// [in] the group of each column, where columns were put in groups by activation order; else
  /// empty: i / group.
  std::vector<int32_t> input_groups;
};

/// The scales that GPTQ rounds with.
struct GptqScales {
  int64_t group = 0;  ///< inputs of one scale: a multiple of 32 or a power of two below; 0: a row
  /// [out, groups], chosen beforehand ("static groups"); groups are then those of the matrix' own
  /// column order, whatever the order of rounding. Empty: a group's scale is chosen when its first
  /// column's turn comes, from weights that make up for the errors so far; with activation order
  /// its columns are those whose turns follow.
  std::vector<GptqScale> fixed = {};
};

/// Rounds a matrix column by column; each column's error is made up for by the columns that follow:
///
///   q_i = round(w_i),  e_i = (w_i - q_i) / U_ii,  w_j -= e_i U_ij for j > i
///
/// which is what minimises (w - q) H (w - q)^T over the columns that are left. Exact: every update
/// is applied before a column is rounded or a scale chosen; blocks of 32 columns only change the
/// order of f32 sums. Rows are independent; the result does not depend on the number of threads.
///
/// @param weights [out, in] f32, row-major, finite
/// @throws Error kInvalidArgument if sizes do not fit; kUnsupported for another group size
/// @source Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
///         Transformers", algorithm 1
GptqMatrix gptq_quantize(std::span<const float> weights, int64_t out, const GptqHessian& hessian,
                         const GptqScales& scales, const GptqGrid& grid, const Threads& threads,
                         IsaSet isas = host_isas());

}  // namespace gantry
