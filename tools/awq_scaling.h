#pragma once

// AWQ's scales for MoE layers: what is multiplied into the weights of experts, and where their
// inverse goes.

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/parallel_for.h"
#include "runtime/moe_model.h"
#include "tools/quantize_plan.h"
#include "tools/stats_hessians.h"

namespace gantry::cli {

/// The scales of a checkpoint's layers, searched when it is made.
///
/// Inputs of w1 and w3: one vector [H] a layer, shared by its experts. Its inverse goes into the
/// norm in front of the block, and everything else that reads the norm is multiplied like the
/// experts: the router (so that it routes as before), shared experts and their gate. The scales are
/// powers of two: nothing of all that is rounded. Only models whose norm is known to be read by the
/// block alone (`foldable_norm`) get them; others are named in the log, and stay unscaled.
///
/// Inputs of w2: one vector [I] an expert. Its inverse goes into the rows of w3, of activations
/// that are linear in w3's output.
///
/// Formats with a tensor for it (pre_quant_scale) keep the inverse there: of every model and
/// activation, scales of any value, nothing else changes.
class AwqScaling {
 public:
  /// @param hessians of gantry calibrate, in `stats`; must outlive this
  /// @throws Error as StatsHessians::read and MatrixReader::read do
  AwqScaling(const MoeModel& model, const QuantizePlan& plan, const StatsHessians& hessians,
             std::filesystem::path stats, const Threads& threads);

  /// [H] of a layer; ones where its inputs are not scaled.
  [[nodiscard]] const std::vector<float>& input_scales(int layer) const;
  /// What the last axis of a tensor beside the experts is multiplied by; empty: it stays.
  [[nodiscard]] std::vector<float> factors_of(const std::string& tensor) const;

  /// [I], searched for one expert; ones where nothing can take the inverse, nothing is gained, or
  /// no sample reached the expert.
  /// @param w2      [H, I]
  /// @param hessian of its inputs, or empty
  [[nodiscard]] std::vector<float> down_scales(const MoeLayerSpec& spec, std::span<const float> w2,
                                               std::span<const float> hessian) const;

  /// The largest magnitude of inputs that are divided by scales, of all experts or one; 0 if
  /// nothing is known.
  [[nodiscard]] float gate_up_amax(int layer) const;
  [[nodiscard]] float down_amax(const MoeLayerSpec& spec, int expert,
                                std::span<const float> scales) const;

  /// Whether the scales' inverse is a tensor of its own.
  [[nodiscard]] bool keeps_factors() const noexcept;

  [[nodiscard]] const StatsHessians& hessians() const noexcept { return hessians_; }

 private:
  struct Layer {
    std::string norm;  ///< that takes the scales' inverse; empty: none does
    std::vector<float> scales;
    float amax = 0.0F;
  };

  Layer search(const MoeLayerSpec& spec, const Threads& threads) const;
  [[nodiscard]] std::vector<std::vector<float>> candidates_of(std::span<const float> squares,
                                                              bool powers_of_two) const;
  [[nodiscard]] std::vector<double> candidate_errors(
      const MoeLayerSpec& spec, const std::vector<std::vector<float>>& candidates,
      const Threads& threads) const;

  const MoeModel& model_;
  const QuantizePlan& plan_;
  const StatsHessians& hessians_;
  std::filesystem::path stats_;
  std::map<int, Layer> layers_;
};

/// The name of the norm whose output this layer's MoE block, and nothing else, reads.
/// @param reason why there is none
/// @return empty: none is known
std::string foldable_norm(const MoeModel& model, const MoeLayerSpec& spec, std::string& reason);

}  // namespace gantry::cli
