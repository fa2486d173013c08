#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"

namespace gantry GANTRY_API {

/// The sum of x x^T over rows x [n]: the Hessian of a linear layer's squared error, up to a factor,
/// as GPTQ wants it. Sums are f32, in the order in which rows are added; the result does not depend
/// on the number of threads.
///
/// Holds half of the symmetric matrix in panels: panel p is [padded n - 32 p, 32], the columns
/// 32 p .. 32 p + 31 from row 32 p on.
class GramMatrix {
 public:
  /// @throws Error kInvalidArgument if n < 1
  explicit GramMatrix(int64_t n, IsaSet isas = host_isas());

  [[nodiscard]] int64_t size() const noexcept { return n_; }
  /// Bytes that a matrix of this size holds, while rows are added (`threads` does not matter).
  [[nodiscard]] static int64_t bytes(int64_t n) noexcept;

  /// Adds rows [T, n], `stride` elements apart.
  /// @throws Error kInvalidArgument if `rows` is shorter than that
  void add(std::span<const float> rows, int64_t num_rows, int64_t stride, const Threads& threads);
  /// Forgets all rows.
  void clear() noexcept;
  /// The whole matrix, [n, n], row-major.
  void copy_to(std::span<float> matrix) const;

 private:
  void add_chunk(const float* rows, int64_t num_rows, int64_t stride, const Threads& threads);
  [[nodiscard]] int64_t panel_offset(int64_t panel) const noexcept;

  int64_t n_;
  int64_t padded_;
  IsaSet isas_;
  Buffer<float> panels_;
  Buffer<float> transposed_;  // [padded n, chunk stride] of the rows being added
  Buffer<float> packed_;      // [panels, chunk, 32] of the same
};

}  // namespace gantry
