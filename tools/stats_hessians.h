#pragma once

// The Hessians of `gantry calibrate --hessians`, as they are and factorized for GPTQ.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/quant/gptq.h"
#include "loader/moe_config.h"

namespace gantry::cli {

/// Gives each matrix the factors of its inputs' Hessian. One that all experts of a layer share is
/// factorized once and kept while experts of that layer are quantized. Thread-safe.
class StatsHessians {
 public:
  StatsHessians(std::filesystem::path directory, const GptqSettings& settings)
      : directory_(std::move(directory)), settings_(settings) {}

  /// The sum of x x^T over the samples of w1 and w3, or of w2 (`down`), [n, n].
  /// @return empty if no sample reached the expert
  /// @throws Error kFormat, kInvalidArgument naming the file if it holds no such Hessian; kIo
  [[nodiscard]] std::vector<float> read(const MoeLayerSpec& spec, int expert, bool down) const;
  /// Whether all experts of a layer have one Hessian for w1 and w3.
  [[nodiscard]] bool shares_gate_up(const MoeLayerSpec& spec) const;

  /// The factors of the same.
  /// @return null if no sample reached the expert
  /// @throws Error as read does
  std::shared_ptr<const GptqHessian> factors(const MoeLayerSpec& spec, int expert, bool down);

 private:
  std::filesystem::path directory_;
  GptqSettings settings_;
  std::mutex mutex_;
  std::map<int, std::shared_ptr<const GptqHessian>> shared_;  // of w1 and w3, by layer
};

}  // namespace gantry::cli
