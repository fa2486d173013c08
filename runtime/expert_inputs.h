#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/fused_moe/fused_experts.h"
#include "loader/matrix_reader.h"
#include "loader/moe_config.h"

namespace gantry {

/// The w13 of one expert in f32 panels, to compute what goes into its w2. Internal.
class ExpertInputs {
 public:
  /// Reads and packs w1, w3 and their biases.
  ExpertInputs(const MatrixReader& reader, const MoeLayerSpec& spec, int expert);

  /// Bytes that an object of such a layer holds.
  static int64_t bytes(const MoeLayerSpec& spec) noexcept;
  /// Bytes that a Scratch holds.
  static int64_t scratch_bytes(const MoeLayerSpec& spec, int64_t max_rows) noexcept;

  /// Memory of `run`, for up to max_rows rows. Made once.
  struct Scratch {
    Scratch(const MoeLayerSpec& spec, int64_t max_rows);
    FusedExpertsKernels kernels;
    FusedExpertsScratch linear;
    std::vector<float> gate;  // [max_rows, I]
    std::vector<float> up;    // [max_rows, I], where there is a gate
  };

  /// f(W1 x, W3 x) of rows x [T, H], [T, I], in the scratch's memory.
  std::span<const float> run(std::span<const float> x, int64_t num_rows, const Threads& threads,
                             Scratch& scratch) const;

 private:
  struct Projection {
    PackedLayout layout;
    ByteBuffer panels;
    std::vector<float> bias;
  };
  const MoeLayerSpec& spec_;
  Projection w1_;
  Projection w3_;
};

}  // namespace gantry
