#pragma once

// What `gantry diff` prints and draws.

#include <span>
#include <string>

#include "runtime/model_diff.h"
#include "tools/cli_common.h"

namespace gantry::cli {

struct DiffPrintSettings {
  bool all_experts = false;  ///< a line for every expert, not only for the least like ones
  size_t max_lines = 20;     ///< of each list
};

/// Prints differences as they are found, as text and as JSON events.
class DiffPrinter {
 public:
  DiffPrinter(const Output& output, DiffPrintSettings settings)
      : output_(output), settings_(settings) {}

  void print_head(const std::string& name_a, const MoeModel& a, const std::string& name_b,
                  const MoeModel& b, const DiffSettings& settings) const;
  void print_layer(const LayerDifference& layer) const;
  void print_rest(const ModelTensorDifference& rest) const;

 private:
  void print_experts(const LayerDifference& layer) const;
  void print_origins(const LayerDifference& layer) const;
  void print_tensor(const TensorDifference& tensor) const;
  void print_list(std::string_view what, std::string_view event,
                  const std::vector<std::string>& names) const;

  const Output& output_;
  DiffPrintSettings settings_;
};

/// "rel 0.5" or "snr 20.0 dB": the limits that are set.
std::string limit_text(const DiffSettings& settings);

/// "equal" or "26.4 dB"
std::string snr_text(const Difference& difference);

/// A heat map: a row a layer, a cell an expert, a panel a projection; the colour is the SNR.
std::string diff_svg(std::span<const LayerDifference> layers, const std::string& name_a,
                     const std::string& name_b);

}  // namespace gantry::cli
