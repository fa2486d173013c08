#pragma once

// Rows of a benchmark: as a table, as CSV or JSON lines, read back from files (also those that
// other projects' benchmarks print), and as a plot.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gantry::cli {

/// One measurement: a layer's shape, who computed it, and for how many tokens.
struct BenchRow {
  std::string shape;    ///< the model that the layer is taken from
  std::string impl;     ///< implementation and weight format
  std::string routing;  ///< how tokens choose experts; may be empty
  int64_t tokens = 0;
  double ms_min = 0;       ///< milliseconds
  double ms_median = 0;    ///< milliseconds
  double ms_p90 = 0;       ///< milliseconds; 0: not known
  double weight_gb_s = 0;  ///< bytes of the touched experts' weights over the median, 1e9 bytes/s
  double tflops = 0;       ///< useful FLOP over the median, 1e12 FLOP/s
  double rel_err = 0;      ///< against a reference; NaN: the result was not finite
  double ceiling_ms = 0;   ///< what the machine needs at least, milliseconds; 0: not known
  /// Least over median time, the median of slices of the run; 0: not known.
  double of_ceiling = 0;
  /// Time with results that do not depend on the batch over the time without; 0: not measured.
  double batch_invariant_ratio = 0;
};

enum class BenchFormat : uint8_t {
  kMarkdown,   ///< A table for people, figures rounded.
  kCsv,        ///< RFC 4180, all figures in full.
  kJsonLines,  ///< One object a line, all figures in full.
};

/// "md", "csv" or "jsonl". @throws Error kInvalidArgument
BenchFormat parse_bench_format(std::string_view text);

/// What stands before the first row: the names of the columns, without a newline at the end. Empty
/// for JSON lines.
std::string bench_header(BenchFormat format);

/// A row, without a newline at the end.
std::string bench_line(const BenchRow& row, BenchFormat format);

/// Reads JSON lines, ours or others': fields beyond those of BenchRow are ignored, fields that are
/// missing stay as in BenchRow{} except impl, tokens and ms_median, and null is NaN. Empty lines
/// and objects with an "error" are skipped.
/// @throws Error kIo, kFormat (a line that is no such object; the message names file and line)
std::vector<BenchRow> read_bench_rows(const std::filesystem::path& path);

/// A plot of ms_median over tokens, both logarithmic, as a self-contained SVG document. One line
/// for each impl and routing (and shape, where rows differ in it), in order of appearance; a later
/// row for the same tokens replaces an earlier one. Ceilings are dashed. Rows without a positive
/// time and token count are left out.
std::string bench_svg(std::span<const BenchRow> rows, std::string_view title);

}  // namespace gantry::cli
