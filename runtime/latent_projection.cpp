#include "runtime/latent_projection.h"

#include "kernels/fused_moe/fused_experts.h"

namespace gantry {

LatentProjection::LatentProjection(const MatrixReader& reader, const MoeLayerSpec& spec) {
  if (!spec.has_latent()) return;
  layout_ = {DType::kF32, /*gated=*/false, spec.expert_hidden_size, spec.hidden_size};
  panels_ = ByteBuffer(static_cast<size_t>(layout_.bytes()));
  pack_matrix(layout_, reader.read_single(spec.layer, Part::kLatentIn, TensorKind::kWeight).data(),
              panels_.data());
  bias_ = reader.read_single(spec.layer, Part::kLatentIn, TensorKind::kBias);
}

std::span<const float> LatentProjection::apply(std::span<const float> x,
                                               const Threads& threads) const {
  if (panels_.size() == 0) return x;
  const int64_t num_rows = static_cast<int64_t>(x.size()) / layout_.k;
  projected_.resize(static_cast<size_t>(num_rows * layout_.n));
  const FusedExpertsKernels kernels = select_fused_experts({.weights = DType::kF32,
                                                            .activations = ActivationDType::kF32,
                                                            .isas = host_isas(),
                                                            .avx512_dot = Avx512Dot::kFma});
  FusedExpertsScratch scratch(linear_scratch(layout_, kernels, num_rows));
  linear(x, layout_, panels_.data(), bias_.empty() ? nullptr : bias_.data(), projected_, kernels,
         threads, scratch);
  return projected_;
}

}  // namespace gantry
