#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/weight_loader.h"
#include "runtime/device_moe_layer.h"
#include "runtime/moe_model.h"
#include "runtime/reference.h"

namespace gantry GANTRY_API {

/// How a model is verified.
struct VerifySettings {
  ParallelConfig parallel;
  RankSetup ranks;  ///< with processes for ranks verify_model is collective
  ExpertPlacement placement;
  ActivationDType activations = ActivationDType::kF32;
  IsaSet isas = host_isas();
  Avx512Dot avx512_dot = avx512_dot_choice().flavour;
  /// Largest relative error; 0: default_tolerance(activations), with kScheme scheme_tolerance.
  double tolerance = 0.0;
  ExchangeOptions exchange;
  bool no_reduce = false;  ///< ranks leave their parts to be added here (dp_size 1)
  bool batch_invariant = false;
  LoadOptions load;
};

/// 1e-5 for f32, 1e-2 for bf16: f32 sums of a few thousand terms stay below 1e-6; rounding to bf16
/// costs 2^-9 an operand, 2e-3 to 5e-3 after two GEMMs.
double default_tolerance(ActivationDType activations) noexcept;

/// The limit of a block whose activations are quantized and simulated in f32.
///
/// The inputs of w13 are the reference's, so are their codes. The inputs of w2 are f32 sums, which
/// agree to about 1e-6 whatever the order: a value that near to the middle between two codes may
/// fall to the other side. Nothing else differs by more than in f32 (1e-5). With q the largest step
/// between codes as a share of the group's largest magnitude (int8: 1/127, e4m3: 32/448, e2m1:
/// 2/6), N = T * K * J values, and a largest magnitude of at most 8 times their rms:
///  - one flip in N changes the result by at most 8 q / sqrt(N) of its norm;
///  - a share of 2 * 1e-6 / q of the values flips, which is 8 q * sqrt(2e-6 / q) of the norm.
///
///   limit = 1e-5 + 8 * sqrt(q^2 / N + 2e-6 * q)
///
/// For N = 6144 (the goldens) that is 1.3e-3, 8e-3 and 3.5e-2; another formula for a scale, or
/// none, is off by the noise of the format: 1e-2, 5e-2, 2e-1. Without a flip the error stays below
/// 1e-6.
double scheme_tolerance(const RowFormat& format, int64_t num_values) noexcept;

/// How one MoE block compares with its reference.
struct BlockResult {
  int layer = -1;
  std::string name;
  double error = 0.0;  ///< ||y - ref||_F / ||ref||_F
  double limit = 0.0;
  std::vector<float> out;  // [T, H]
  [[nodiscard]] bool ok() const noexcept { return error <= limit; }
};

struct VerifyResult {
  LoadStats load;       ///< of all ranks
  LoadStats own_load;   ///< of this process' rank, where ranks are processes
  ExchangeBytes moved;  ///< by all ranks, in all compared blocks
  std::vector<BlockResult> blocks;
};

/// Loads every MoE layer on every rank, one layer in memory at a time, and runs those that have a
/// reference. Whatever is wrong is added to model.report().
///
/// @param model     opened without findings
/// @param reference may be null: then only the load is proven
/// @param on_block  called after each compared block; may be empty
VerifyResult verify_model(MoeModel& model, const Reference* reference,
                          const VerifySettings& settings,
                          const std::function<void(const BlockResult&)>& on_block);

}  // namespace gantry
