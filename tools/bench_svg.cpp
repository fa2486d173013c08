// The plot of tools/bench_report.h.

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "kernels/base/check.h"
#include "tools/bench_report.h"
#include "tools/xml_text.h"

namespace gantry::cli {
namespace {

using Points = std::map<int64_t, double>;  // tokens -> ms, both positive

struct Series {
  std::string label;
  Points times;
  Points ceilings;
};

std::vector<Series> series_of(std::span<const BenchRow> rows) {
  const auto is_positive = [](double ms) { return std::isfinite(ms) && ms > 0; };
  const bool many_shapes = std::any_of(rows.begin(), rows.end(), [&](const BenchRow& row) {
    return row.shape != rows.front().shape;
  });
  std::vector<Series> all;
  for (const BenchRow& row : rows) {
    if (row.tokens <= 0 || !is_positive(row.ms_median)) continue;
    std::string label = row.impl;
    if (!row.routing.empty()) label += ", " + row.routing;
    if (many_shapes) label += ", " + row.shape;
    auto found = std::find_if(all.begin(), all.end(),
                              [&](const Series& series) { return series.label == label; });
    if (found == all.end()) found = all.insert(found, Series{label, {}, {}});
    found->times[row.tokens] = row.ms_median;
    if (is_positive(row.ceiling_ms)) found->ceilings[row.tokens] = row.ceiling_ms;
  }
  return all;
}

// Places in pixels.
constexpr double kLeft = 70;
constexpr double kTop = 50;
constexpr double kPlotWidth = 640;
constexpr double kPlotHeight = 440;
constexpr double kLegendLeft = kLeft + kPlotWidth + 30;
constexpr double kLegendStep = 20;
constexpr double kLetterWidth = 7;  // of 12 pixel sans-serif, on the generous side

// Dark enough for a white page, and told apart by colour-blind readers.
constexpr std::array<const char*, 8> kColours = {"#0072b2", "#d55e00", "#009e73", "#aa3377",
                                                 "#56a0d3", "#b8860b", "#6a3d9a", "#333333"};

// One axis: a range of logarithms on a range of pixels.
struct LogAxis {
  double low;  // decimal logarithms
  double high;
  double from;  // pixels
  double to;
  [[nodiscard]] double at(double value) const {
    return from + (std::log10(value) - low) / (high - low) * (to - from);
  }
};

struct Plot {
  LogAxis x;
  LogAxis y;
  Points tokens;  // all token counts; the values mean nothing
};

// Without any point: 1 .. 10 tokens and 1 .. 10 ms.
Plot plot_of(const std::vector<Series>& all) {
  Plot plot{{0, 1, kLeft, kLeft + kPlotWidth}, {0, 1, kTop + kPlotHeight, kTop}, {}};
  std::vector<double> times;
  for (const Series& series : all) {
    for (const Points& points : {series.times, series.ceilings}) {
      plot.tokens.insert(points.begin(), points.end());
      for (const auto& [tokens, ms] : points)
        times.push_back(ms);
    }
  }
  if (times.empty()) return plot;
  constexpr double kMargin = 0.1;  // keeps markers off the frame
  plot.x.low = std::log10(static_cast<double>(plot.tokens.begin()->first)) - kMargin;
  plot.x.high = std::log10(static_cast<double>(plot.tokens.rbegin()->first)) + kMargin;
  const auto [least, most] = std::minmax_element(times.begin(), times.end());
  plot.y.low = std::floor(std::log10(*least));
  plot.y.high = std::max(plot.y.low + 1, std::ceil(std::log10(*most)));
  return plot;
}

void append_line(std::string& svg, double x1, double y1, double x2, double y2, const char* colour,
                 std::string_view attributes = "") {
  svg += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"{}/>\n", x1, y1,
      x2, y2, colour, attributes);
}

void append_text(std::string& svg, double x, double y, const char* anchor, std::string_view text) {
  svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     xml_text(text));
}

void append_axes(std::string& svg, const Plot& plot) {
  constexpr double kBottom = kTop + kPlotHeight;
  constexpr double kRight = kLeft + kPlotWidth;
  constexpr double kMinTickDistance = 34;  // pixels: labels of tokens must not touch
  double last = -kMinTickDistance;
  for (const auto& [tokens, unused] : plot.tokens) {
    const double x = plot.x.at(static_cast<double>(tokens));
    if (x - last < kMinTickDistance) continue;
    last = x;
    append_line(svg, x, kTop, x, kBottom, "#e4e4e4");
    append_text(svg, x, kBottom + 18, "middle", std::to_string(tokens));
  }
  for (int decade = static_cast<int>(plot.y.low); decade <= static_cast<int>(plot.y.high);
       ++decade) {
    for (const int digit : {1, 2, 5}) {
      const double ms = digit * std::pow(10.0, decade);
      if (digit > 1 && decade >= static_cast<int>(plot.y.high)) break;
      append_line(svg, kLeft, plot.y.at(ms), kRight, plot.y.at(ms),
                  digit == 1 ? "#bbbbbb" : "#eeeeee");
      if (digit == 1)
        append_text(svg, kLeft - 8, plot.y.at(ms) + 4, "end", fmt::format("{:g}", ms));
    }
  }
  append_line(svg, kLeft, kTop, kLeft, kBottom, "#333333");
  append_line(svg, kLeft, kBottom, kRight, kBottom, "#333333");
  append_text(svg, kLeft + kPlotWidth / 2, kBottom + 40, "middle", "tokens");
  append_text(svg, kLeft - 8, kTop - 12, "end", "median ms");
}

std::string coordinates(const Plot& plot, const Points& points) {
  std::string text;
  for (const auto& [tokens, ms] : points)
    text += fmt::format("{}{:.1f},{:.1f}", text.empty() ? "" : " ",
                        plot.x.at(static_cast<double>(tokens)), plot.y.at(ms));
  return text;
}

void append_series(std::string& svg, const Plot& plot, const Series& series, const char* colour) {
  svg += fmt::format(
      "<polyline class=\"series\" points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
      coordinates(plot, series.times), colour);
  for (const auto& [tokens, ms] : series.times) {
    svg += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"><title>{}</title></circle>\n",
        plot.x.at(static_cast<double>(tokens)), plot.y.at(ms), colour,
        xml_text(fmt::format("{}: {} tokens, {:.4g} ms", series.label, tokens, ms)));
  }
}

constexpr const char* kDashed = R"( stroke-width="1.5" stroke-dasharray="6 4")";

// A line of the legend, with a sample of what it stands for.
struct LegendEntry {
  std::string label;
  const char* colour;
  bool is_ceiling;
};

void append_legend(std::string& svg, const std::vector<LegendEntry>& entries) {
  double y = kTop + 10;
  for (const LegendEntry& entry : entries) {
    append_line(svg, kLegendLeft, y, kLegendLeft + 28, y, entry.colour,
                entry.is_ceiling ? kDashed : R"( stroke-width="2")");
    if (!entry.is_ceiling) {
      svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"/>\n",
                         kLegendLeft + 14, y, entry.colour);
    }
    append_text(svg, kLegendLeft + 36, y + 4, "start", entry.label);
    y += kLegendStep;
  }
}

}  // namespace

std::string bench_svg(std::span<const BenchRow> rows, std::string_view title) {
  const std::vector<Series> all = series_of(rows);
  const Plot plot = plot_of(all);
  std::string body;
  append_text(body, kLeft, 20, "start", title);
  append_axes(body, plot);

  std::vector<LegendEntry> legend;
  std::vector<LegendEntry> ceiling_legend;
  std::vector<Points> ceilings;  // those drawn: implementations that do the same work share one
  for (size_t i = 0; i < all.size(); ++i) {
    const Series& series = all[i];
    const char* colour = kColours[i % kColours.size()];
    legend.push_back({series.label, colour, false});
    append_series(body, plot, series, colour);
    if (series.ceilings.empty() ||
        std::find(ceilings.begin(), ceilings.end(), series.ceilings) != ceilings.end()) {
      continue;
    }
    ceilings.push_back(series.ceilings);
    ceiling_legend.push_back({"ceiling of " + series.label, colour, true});
    body += fmt::format("<path class=\"ceiling\" d=\"M {}\" fill=\"none\" stroke=\"{}\"{}/>\n",
                        coordinates(plot, series.ceilings), colour, kDashed);
  }
  legend.insert(legend.end(), ceiling_legend.begin(), ceiling_legend.end());
  append_legend(body, legend);

  size_t longest = 0;
  for (const LegendEntry& entry : legend)
    longest = std::max(longest, entry.label.size());
  const double width = kLegendLeft + 50 + kLetterWidth * static_cast<double>(longest);
  const double height =
      kTop + std::max(kPlotHeight + 60, kLegendStep * static_cast<double>(legend.size() + 1));
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222222\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{2}</svg>\n",
      width, height, body);
}

}  // namespace gantry::cli
