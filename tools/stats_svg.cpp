// The heat map of tools/layer_stats.h.

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/base/check.h"
#include "tools/layer_stats.h"
#include "tools/xml_text.h"

namespace gantry::cli {
namespace {

// Places in pixels.
constexpr double kLeft = 60;
constexpr double kTop = 60;
constexpr double kMostWidth = 1000;
constexpr double kMostCell = 24;
constexpr double kLeastCell = 3;
constexpr double kLeastRow = 10;
constexpr double kLegendGap = 40;
constexpr double kLegendCell = 40;
constexpr double kMinLabelDistance = 30;  // labels must not touch

// Load in units of the mean: from none over even to a multiple. Yellow to dark, which stays a scale
// of brightness without colours.
struct Band {
  double below;  // of the mean
  const char* label;
  const char* colour;
};
constexpr std::array<Band, 8> kBands = {{{1e-9, "0", "#ffffff"},
                                         {0.25, "< 1/4", "#fff7bc"},
                                         {0.5, "< 1/2", "#fee391"},
                                         {1.0, "< 1", "#fec44f"},
                                         {2.0, "< 2", "#fe9929"},
                                         {4.0, "< 4", "#d95f0e"},
                                         {8.0, "< 8", "#993404"},
                                         {1e300, "more", "#4a1486"}}};

const char* colour_of(double ratio) {
  return std::find_if(kBands.begin(), kBands.end(),
                      [&](const Band& band) { return ratio < band.below; })
      ->colour;
}

void append_rect(std::string& svg, double x, double y, double width, double height,
                 const char* colour, std::string_view title = "") {
  svg += fmt::format(R"(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}")", x,
                     y, width, height, colour);
  svg += title.empty() ? std::string("/>\n")
                       : fmt::format("><title>{}</title></rect>\n", xml_text(title));
}

void append_text(std::string& svg, double x, double y, const char* anchor, std::string_view text) {
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     xml_text(text));
}

}  // namespace

std::string stats_svg(std::span<const LayerStats> layers, std::string_view title) {
  size_t most_experts = 1;
  for (const LayerStats& layer : layers)
    most_experts = std::max(most_experts, layer.load.tokens_per_expert.size());
  const double cell =
      std::clamp(kMostWidth / static_cast<double>(most_experts), kLeastCell, kMostCell);
  const double row = std::max(cell, kLeastRow);
  const double plot_width = cell * static_cast<double>(most_experts);
  const double plot_height = row * static_cast<double>(layers.size());

  std::string body;
  append_text(body, kLeft, 20, "start", title);
  append_text(body, kLeft + plot_width / 2, kTop - 26, "middle", "expert");
  append_text(body, kLeft - 8, kTop - 8, "end", "layer");
  double last = -kMinLabelDistance;
  for (size_t e = 0; e < most_experts; ++e) {
    const double x = kLeft + (static_cast<double>(e) + 0.5) * cell;
    if (x - last < kMinLabelDistance) continue;
    last = x;
    append_text(body, x, kTop - 8, "middle", std::to_string(e));
  }
  double y = kTop;
  for (const LayerStats& layer : layers) {
    const auto& tokens = layer.load.tokens_per_expert;
    const double mean = static_cast<double>(layer.total()) / static_cast<double>(tokens.size());
    append_text(body, kLeft - 8, y + row / 2 + 4, "end", std::to_string(layer.layer));
    for (size_t e = 0; e < tokens.size(); ++e) {
      const double ratio = mean > 0 ? static_cast<double>(tokens[e]) / mean : 0.0;
      append_rect(body, kLeft + static_cast<double>(e) * cell, y, cell, row, colour_of(ratio),
                  fmt::format("layer {}, expert {}: {} tokens, {:.2f} of the mean", layer.layer, e,
                              tokens[e], ratio));
    }
    y += row;
  }
  body += fmt::format(
      R"(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="none" stroke="#333333"/>)"
      "\n",
      kLeft, kTop, plot_width, plot_height);

  const double legend = kTop + plot_height + kLegendGap;
  append_text(body, kLeft, legend - 8, "start", "tokens of an expert / mean of its layer");
  for (size_t i = 0; i < kBands.size(); ++i) {
    const double x = kLeft + static_cast<double>(i) * kLegendCell;
    append_rect(body, x, legend, kLegendCell, 14, kBands[i].colour);
    append_text(body, x + kLegendCell / 2, legend + 28, "middle", kBands[i].label);
  }
  const double width =
      kLeft + std::max(plot_width, kLegendCell * static_cast<double>(kBands.size())) + 20;
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222222\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{2}</svg>\n",
      width, legend + 44, body);
}

}  // namespace gantry::cli
