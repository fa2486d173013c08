#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/base/export.h"
#include "loader/weight_loader.h"
#include "runtime/moe_model.h"
#include "runtime/reference.h"

namespace gantry GANTRY_API {

/// How a model is verified.
struct VerifySettings {
  ParallelConfig parallel;  ///< ranks, simulated as threads
  Placement placement = Placement::kLinear;
  ActivationDType activations = ActivationDType::kF32;
  IsaSet isas = host_isas();
  double tolerance = 0.0;  ///< largest relative error; 0: default_tolerance(activations)
  LoadOptions load;
};

/// 1e-5 for f32, 1e-2 for bf16: f32 sums of a few thousand terms stay below 1e-6; rounding to bf16
/// costs 2^-9 an operand, 2e-3 to 5e-3 after two GEMMs.
double default_tolerance(ActivationDType activations) noexcept;

/// How one MoE block compares with its reference.
struct BlockResult {
  int layer = -1;
  std::string name;
  double error = 0.0;  ///< ||y - ref||_F / ||ref||_F
  double limit = 0.0;
  [[nodiscard]] bool ok() const noexcept { return error <= limit; }
};

struct VerifyResult {
  LoadStats load;
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
