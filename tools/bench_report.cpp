#include "tools/bench_report.h"

#include <array>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"

namespace gantry::cli {
namespace {

using nlohmann::ordered_json;

// Names in JSON and CSV, in the order of columns; `tokens` stands between the two groups.
struct TextField {
  const char* name;
  std::string BenchRow::*member;
};
struct NumberField {
  const char* name;
  double BenchRow::*member;
};
constexpr TextField kTextFields[] = {
    {"shape", &BenchRow::shape}, {"impl", &BenchRow::impl}, {"routing", &BenchRow::routing}};
constexpr NumberField kNumberFields[] = {
    {"ms_min", &BenchRow::ms_min},
    {"ms_median", &BenchRow::ms_median},
    {"ms_p90", &BenchRow::ms_p90},
    {"weight_gb_s", &BenchRow::weight_gb_s},
    {"tflops", &BenchRow::tflops},
    {"rel_err", &BenchRow::rel_err},
    {"ceiling", &BenchRow::ceiling_ms},
    {"of_ceiling", &BenchRow::of_ceiling},
    {"batch_invariant_ratio", &BenchRow::batch_invariant_ratio}};

// ---- Markdown ----------------------------------------------------------------------------------

// Widths are those of usual contents: rows appear one by one, so none can wait for the widest.
struct MarkdownColumn {
  const char* title;
  int width;
  bool is_text;
};
constexpr std::array<MarkdownColumn, 11> kMarkdownColumns = {{{"shape", 14, true},
                                                              {"impl", 28, true},
                                                              {"routing", 8, true},
                                                              {"tokens", 6, false},
                                                              {"ms", 8, false},
                                                              {"GB/s", 6, false},
                                                              {"TFLOP/s", 7, false},
                                                              {"ceiling ms", 10, false},
                                                              {"of ceiling", 10, false},
                                                              {"rel err", 7, false},
                                                              {"invariant", 9, false}}};
using MarkdownCells = std::array<std::string, kMarkdownColumns.size()>;

std::string markdown_line(const MarkdownCells& cells) {
  std::string line = "|";
  for (size_t i = 0; i < cells.size(); ++i) {
    const auto& [title, width, is_text] = kMarkdownColumns[i];
    line += is_text ? fmt::format(" {:<{}} |", cells[i], width)
                    : fmt::format(" {:>{}} |", cells[i], width);
  }
  return line;
}

std::string markdown_text(std::string_view text) {
  std::string cell;
  for (const char c : text) {
    if (c == '|') cell += '\\';
    cell += c == '\n' || c == '\r' ? ' ' : c;
  }
  return cell;
}

// Three digits or so; zero is what was not measured.
std::string rounded(double value) {
  if (value == 0) return "-";
  const double size = std::abs(value);
  return fmt::format("{:.{}f}", value, size < 1 ? 3 : size < 10 ? 2 : size < 100 ? 1 : 0);
}

std::string markdown_header() {
  MarkdownCells titles;
  MarkdownCells rules;
  for (size_t i = 0; i < titles.size(); ++i) {
    const auto& [title, width, is_text] = kMarkdownColumns[i];
    titles[i] = title;
    rules[i] = std::string(static_cast<size_t>(width), '-');
    if (!is_text) rules[i].back() = ':';
  }
  return markdown_line(titles) + "\n" + markdown_line(rules);
}

std::string markdown_row(const BenchRow& row) {
  return markdown_line(
      {markdown_text(row.shape), markdown_text(row.impl), markdown_text(row.routing),
       std::to_string(row.tokens), rounded(row.ms_median), rounded(row.weight_gb_s),
       rounded(row.tflops), rounded(row.ceiling_ms),
       row.of_ceiling == 0 ? "-" : fmt::format("{:.0f} %", 100 * row.of_ceiling),
       row.rel_err == 0 ? "-" : fmt::format("{:.1e}", row.rel_err),
       row.batch_invariant_ratio == 0 ? "-" : fmt::format("{:.2f}x", row.batch_invariant_ratio)});
}

// ---- CSV and JSON lines ------------------------------------------------------------------------

std::string csv_text(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

std::string csv_header() {
  std::string line;
  for (const TextField& field : kTextFields)
    line += fmt::format("{},", field.name);
  line += "tokens";
  for (const NumberField& field : kNumberFields)
    line += fmt::format(",{}", field.name);
  return line;
}

std::string csv_row(const BenchRow& row) {
  std::string line;
  for (const TextField& field : kTextFields)
    line += csv_text(row.*field.member) + ",";
  line += std::to_string(row.tokens);
  for (const NumberField& field : kNumberFields)
    line += fmt::format(",{}", row.*field.member);
  return line;
}

std::string json_row(const BenchRow& row) {
  ordered_json object;
  for (const TextField& field : kTextFields)
    object[field.name] = row.*field.member;
  object["tokens"] = row.tokens;
  for (const NumberField& field : kNumberFields)
    object[field.name] = row.*field.member;  // NaN becomes null
  return object.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

// @throws Error kFormat, without the place
BenchRow row_of(const ordered_json& object) {
  BenchRow row;
  for (const char* name : {"impl", "tokens", "ms_median"}) {
    GANTRY_CHECK(object.contains(name), ErrorCode::kFormat, "'{}' is missing", name);
  }
  for (const TextField& field : kTextFields) {
    const auto found = object.find(field.name);
    if (found == object.end()) continue;
    GANTRY_CHECK(found->is_string(), ErrorCode::kFormat, "'{}' is not a text", field.name);
    row.*field.member = found->get<std::string>();
  }
  for (const NumberField& field : kNumberFields) {
    const auto found = object.find(field.name);
    if (found == object.end()) continue;
    GANTRY_CHECK(found->is_number() || found->is_null(), ErrorCode::kFormat, "'{}' is not a number",
                 field.name);
    row.*field.member =
        found->is_null() ? std::numeric_limits<double>::quiet_NaN() : found->get<double>();
  }
  const auto& tokens = object["tokens"];
  GANTRY_CHECK(tokens.is_number_integer() && tokens.get<int64_t>() > 0, ErrorCode::kFormat,
               "'tokens' is not a positive integer");
  row.tokens = tokens.get<int64_t>();
  return row;
}

}  // namespace

BenchFormat parse_bench_format(std::string_view text) {
  if (text == "md") return BenchFormat::kMarkdown;
  if (text == "csv") return BenchFormat::kCsv;
  if (text == "jsonl") return BenchFormat::kJsonLines;
  fail(ErrorCode::kInvalidArgument, "output format: expected md, csv or jsonl, found '{}'", text);
}

std::string bench_header(BenchFormat format) {
  switch (format) {
    case BenchFormat::kMarkdown:
      return markdown_header();
    case BenchFormat::kCsv:
      return csv_header();
    case BenchFormat::kJsonLines:
      break;
  }
  return "";
}

std::string bench_line(const BenchRow& row, BenchFormat format) {
  switch (format) {
    case BenchFormat::kMarkdown:
      return markdown_row(row);
    case BenchFormat::kCsv:
      return csv_row(row);
    case BenchFormat::kJsonLines:
      break;
  }
  return json_row(row);
}

std::vector<BenchRow> read_bench_rows(const std::filesystem::path& path) {
  std::ifstream file(path);
  GANTRY_CHECK(file.is_open(), ErrorCode::kIo, "cannot open {}", path.string());
  std::vector<BenchRow> rows;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      const ordered_json object = ordered_json::parse(line);
      GANTRY_CHECK(object.is_object(), ErrorCode::kFormat, "not an object");
      if (!object.contains("error")) rows.push_back(row_of(object));
    } catch (const ordered_json::exception& error) {
      fail(ErrorCode::kFormat, "{}:{}: not JSON: {}", path.string(), number, error.what());
    } catch (const Error& error) {
      fail(ErrorCode::kFormat, "{}:{}: {}", path.string(), number, error.what());
    }
  }
  GANTRY_CHECK(!file.bad(), ErrorCode::kIo, "cannot read {}", path.string());
  return rows;
}

}  // namespace gantry::cli
