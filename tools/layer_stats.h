#pragma once

// What `gantry stats` says about the load of layers, in four forms.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "loader/expert_counts_file.h"
#include "tools/cli_common.h"

namespace gantry::cli {

/// The load of one layer.
struct LayerStats {
  int layer = 0;
  LayerLoad load;
  /// Tokens computed by each rank: measured, or expected from the placement.
  std::vector<double> rank_tokens;
  bool measured = false;

  [[nodiscard]] int64_t total() const;
  /// mean / max over ranks.
  [[nodiscard]] double rank_balance() const;
  /// mean / max over experts.
  [[nodiscard]] double expert_balance() const;
};

/// Sum over layers of the mean of the ranks' tokens / sum of their maxima: how busy the ranks are
/// if each layer waits for its slowest rank. (The metric that vLLM logs.)
double overall_balance(std::span<const LayerStats> layers);

/// A table, and with --json a "layer" line each, which `gantry place` and `gantry stats` read.
void print_stats(std::span<const LayerStats> layers, const Output& output);

/// Prometheus' text exposition format, version 0.0.4.
std::string prometheus_text(std::span<const LayerStats> layers);

/// A heat map: a row for each layer, a column for each expert. Colour is the expert's load in units
/// of its layer's mean.
std::string stats_svg(std::span<const LayerStats> layers, std::string_view title);

}  // namespace gantry::cli
