#pragma once

#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/parallel_for.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "loader/matrix_reader.h"

namespace gantry {

/// What the experts see of a layer's input: the same rows, or their latent projection. Internal.
class LatentProjection {
 public:
  LatentProjection(const MatrixReader& reader, const MoeLayerSpec& spec);

  /// @param x [T, H]
  /// @return [T, expert_hidden_size]: x itself, or memory that the next call overwrites
  std::span<const float> apply(std::span<const float> x, const Threads& threads) const;

 private:
  PackedLayout layout_;
  ByteBuffer panels_;  // empty: no projection
  std::vector<float> bias_;
  mutable std::vector<float> projected_;
};

}  // namespace gantry
