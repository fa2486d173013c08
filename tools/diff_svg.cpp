// The heat map of tools/diff_report.h.

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "tools/diff_report.h"
#include "tools/xml_text.h"

namespace gantry::cli {
namespace {

constexpr double kWorstDb = 0.0;
constexpr double kBestDb = 60.0;  // and better: 8-bit formats reach 30 to 45 dB, 4-bit ones 20

// From red (the noise is as large as the signal) through yellow to blue; equal weights are grey.
std::string colour(const Difference& difference) {
  if (difference.equal()) return "#d0d0d0";
  const double snr = difference.snr_db();
  const double t =
      std::isnan(snr) ? 0.0 : std::clamp((snr - kWorstDb) / (kBestDb - kWorstDb), 0.0, 1.0);
  const double hue = 220.0 * t;  // 0 red, 60 yellow, 220 blue
  return fmt::format("hsl({:.0f},75%,50%)", hue);
}

}  // namespace

std::string diff_svg(std::span<const LayerDifference> layers, const std::string& name_a,
                     const std::string& name_b) {
  size_t num_experts = 1;
  for (const LayerDifference& layer : layers) {
    for (const MatrixDifference& matrix : layer.matrices)
      num_experts = std::max(num_experts, static_cast<size_t>(matrix.expert + 1));
  }
  const int cell = num_experts <= 16 ? 24 : num_experts <= 64 ? 12 : 6;
  constexpr int kLeft = 60;
  constexpr int kTop = 48;
  const auto panel_width = static_cast<int>(num_experts) * cell + 24;
  const auto height = static_cast<int>(layers.size()) * cell;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" "
      "font-family=\"sans-serif\" font-size=\"11\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{}\" y=\"16\">SNR of the experts of {} against {}: red {:.0f} dB to blue {:.0f} "
      "dB, "
      "grey equal</text>\n",
      kLeft + 3 * panel_width, kTop + height + 24, kLeft, xml_text(name_b), xml_text(name_a),
      kWorstDb, kBestDb);
  for (size_t p = 0; p < kExpertParts.size(); ++p) {
    const int x = kLeft + static_cast<int>(p) * panel_width;
    svg += fmt::format("<text x=\"{}\" y=\"{}\">{}: experts 0 to {}</text>\n", x, kTop - 6,
                       to_string(kExpertParts[p]), num_experts - 1);
    for (size_t row = 0; row < layers.size(); ++row) {
      const int y = kTop + static_cast<int>(row) * cell;
      if (p == 0) {
        svg += fmt::format("<text x=\"4\" y=\"{}\">layer {}</text>\n", y + cell - 1,
                           layers[row].layer);
      }
      for (const MatrixDifference& matrix : layers[row].matrices) {
        if (matrix.expert < 0 || matrix.part != kExpertParts[p]) continue;
        svg += fmt::format(
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"{}><title>layer {}, "
            "expert {}, {}: {}</title></rect>\n",
            x + matrix.expert * cell, y, cell - 1, cell - 1, colour(matrix.weight),
            matrix.too_large ? " stroke=\"black\"" : "", matrix.layer, matrix.expert,
            to_string(matrix.part), snr_text(matrix.weight));
      }
    }
  }
  return svg + "</svg>\n";
}

}  // namespace gantry::cli
