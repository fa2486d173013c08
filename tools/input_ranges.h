#pragma once

// How large the inputs of quantized matrices get: what static input scales are made of.

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "loader/moe_config.h"

namespace gantry::cli {

/// The statistics of `gantry calibrate`, as far as scales of inputs need them. All experts of a
/// layer share a scale for w1 and w3, and one for w2, as ModelOpt has it: engines take the largest
/// anyway.
class InputRanges {
 public:
  /// No statistics.
  InputRanges() = default;

  /// @throws Error kFormat, kIo naming the file; kInvalidArgument if a layer of the model has no
  ///         statistics, or another number of experts
  static InputRanges read(const std::filesystem::path& directory, const MoeModelConfig& config);

  [[nodiscard]] bool empty() const noexcept { return layers_.empty(); }

  /// The largest magnitude of a layer's inputs, of all experts that were calibrated; nothing where
  /// no expert was.
  [[nodiscard]] std::optional<float> amax(int layer, bool down) const;

  /// Experts without a calibration token, ascending.
  [[nodiscard]] std::vector<int> uncalibrated(int layer) const;

 private:
  struct Layer {
    std::array<float, 2> amax = {0.0F, 0.0F};  // of w1 and w3; of w2
    std::vector<int> uncalibrated;
  };
  std::map<int, Layer> layers_;
};

/// What stands in for statistics, from the weights alone, if hidden states come out of an RMS norm:
/// of H numbers with a mean square of 1 none is larger than sqrt(H). FP8 and FP4 with two levels
/// lose little by a range that is too wide, and clip where it is too narrow.
float assumed_hidden_amax(int64_t hidden_size) noexcept;

/// The same for the inputs of w2: rows of w1 and w3 over such hidden states give numbers of these
/// deviations, and six deviations of each are not passed.
/// @param largest_gate, largest_up the largest norms of the rows of w1 and w3 (1 without a gate)
float assumed_down_amax(float largest_gate, float largest_up) noexcept;

/// The largest norm of the rows of W[out, in].
float largest_row_norm(const std::vector<float>& weights, int64_t in) noexcept;

}  // namespace gantry::cli
