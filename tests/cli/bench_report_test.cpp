#include "tools/bench_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/temp_dir.h"

namespace gantry::cli {
namespace {

using test::expect_error;
using test::TempDir;
using testing::HasSubstr;
using testing::Not;

BenchRow sample_row() {
  BenchRow row;
  row.shape = "qwen3-30b-a3b";
  row.impl = "gantry bf16_amx_32x32";
  row.routing = "uniform";
  row.tokens = 16;
  row.ms_min = 31.25;
  row.ms_median = 33.123456789;
  row.ms_p90 = 40.5;
  row.weight_gb_s = 28.4;
  row.tflops = 0.1 + 0.2;  // has no short decimal form
  row.rel_err = 0.0031;
  row.ceiling_ms = 28.7;
  row.of_ceiling = 0.866;
  row.batch_invariant_ratio = 1.02;
  return row;
}

BenchRow timed_row(std::string_view impl, int64_t tokens, double ms) {
  BenchRow row;
  row.shape = "toy";
  row.impl = impl;
  row.tokens = tokens;
  row.ms_median = ms;
  return row;
}

std::vector<BenchRow> read_text(std::string_view text) {
  const TempDir dir;
  return read_bench_rows(dir.write("rows.jsonl", text));
}

size_t count(std::string_view text, std::string_view part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size()))
    ++found;
  return found;
}

/// What keeps `text` from being a well-formed document of elements, attributes and text as our plot
/// has them; empty if nothing does.
std::string xml_problem(std::string_view text) {
  std::vector<std::string> open;
  size_t at = 0;
  bool had_root = false;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '&') {
      bool known = false;
      for (const std::string_view entity : {"&amp;", "&lt;", "&gt;", "&quot;"})
        known = known || text.substr(at).starts_with(entity);
      if (!known) return "an ampersand";
    }
    if (static_cast<unsigned char>(c) < ' ' && c != '\n') return "a control character";
    if (c != '<') {
      if (open.empty() && c != '\n') return "text outside the root";
      ++at;
      continue;
    }
    size_t end = at + 1;  // of the tag; a quoted '>' does not end it
    for (bool quoted = false; end < text.size() && (quoted || text[end] != '>'); ++end) {
      if (text[end] == '"') quoted = !quoted;
      if (text[end] == '<') return "'<' in a tag";
    }
    if (end == text.size()) return "an open tag";
    const std::string_view tag = text.substr(at + 1, end - at - 1);
    const std::string name(tag.substr(0, tag.find_first_of(" /", 1)));
    if (tag.starts_with('/')) {
      if (open.empty() || "/" + open.back() != name) return "a wrong end: " + name;
      open.pop_back();
    } else {
      if (open.empty() && had_root) return "two roots";
      had_root = true;
      if (count(tag, "\"") != 2 * count(tag, "=\"")) return "a quote in " + std::string(tag);
      if (!tag.ends_with('/')) open.push_back(name);
    }
    at = end + 1;
  }
  return open.empty() ? "" : "no end of " + open.back();
}

TEST(BenchReport, JsonLinesRoundTrip) {
  const BenchRow row = sample_row();
  const std::string line = bench_line(row, BenchFormat::kJsonLines);
  EXPECT_EQ(bench_header(BenchFormat::kJsonLines), "");
  EXPECT_THAT(line, Not(HasSubstr("\n")));
  EXPECT_THAT(line, HasSubstr(R"("ceiling":28.7)"));
  const std::vector<BenchRow> rows = read_text(line + "\n" + line + "\n");
  ASSERT_EQ(rows.size(), 2U);
  const BenchRow& back = rows[1];
  EXPECT_EQ(back.shape, row.shape);
  EXPECT_EQ(back.impl, row.impl);
  EXPECT_EQ(back.routing, row.routing);
  EXPECT_EQ(back.tokens, row.tokens);
  EXPECT_EQ(back.ms_min, row.ms_min);
  EXPECT_EQ(back.ms_median, row.ms_median);
  EXPECT_EQ(back.ms_p90, row.ms_p90);
  EXPECT_EQ(back.weight_gb_s, row.weight_gb_s);
  EXPECT_EQ(back.tflops, row.tflops);
  EXPECT_EQ(back.rel_err, row.rel_err);
  EXPECT_EQ(back.ceiling_ms, row.ceiling_ms);
  EXPECT_EQ(back.of_ceiling, row.of_ceiling);
  EXPECT_EQ(back.batch_invariant_ratio, row.batch_invariant_ratio);
}

TEST(BenchReport, JsonLinesRoundTripOfOddContents) {
  BenchRow row = sample_row();
  row.impl = "a \"b\"\\\n|,<&>\tµ";
  row.rel_err = std::numeric_limits<double>::quiet_NaN();
  const auto rows = read_text(bench_line(row, BenchFormat::kJsonLines));
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].impl, row.impl);
  EXPECT_TRUE(std::isnan(rows[0].rel_err));
  row.impl = "\xff";  // not UTF-8: a line that can be read is still written
  EXPECT_EQ(read_text(bench_line(row, BenchFormat::kJsonLines)).size(), 1U);
}

TEST(BenchReport, ReadsLinesOfPeers) {
  const auto rows = read_text(
      R"({"shape": "qwen3-30b-a3b", "impl": "vllm-cpu bf16 amx", "tokens": 1, "ms_min": 2.01, )"
      R"("ms_median": 4.5, "weight_gb_s": 16.8, "tflops": 0.017, "rel_err": 0.00312, "new": [1]})"
      "\r\n\n"
      R"({"shape": "qwen3-30b-a3b", "impl": "zentorch", "error": "ImportError: x"})"
      "\n"
      R"({"impl": "torch", "tokens": 2, "ms_median": 8})");
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].impl, "vllm-cpu bf16 amx");
  EXPECT_EQ(rows[0].routing, "");
  EXPECT_EQ(rows[0].ms_median, 4.5);
  EXPECT_EQ(rows[0].ceiling_ms, 0.0);
  EXPECT_EQ(rows[1].tokens, 2);
  EXPECT_EQ(rows[1].ms_median, 8.0);
}

TEST(BenchReport, BadLinesNameFileAndLine) {
  const auto expect_format = [](std::string_view line, std::string_view what) {
    const std::string good = R"({"impl": "a", "tokens": 1, "ms_median": 1})";
    expect_error([&] { read_text(good + "\n" + std::string(line)); }, ErrorCode::kFormat,
                 {"rows.jsonl:2:", what});
  };
  expect_format("{", "not JSON");
  expect_format(R"({"impl": "a", "tokens": 1, "ms_median": NaN})", "not JSON");
  expect_format("[1]", "not an object");
  expect_format(R"({"tokens": 1, "ms_median": 1})", "'impl' is missing");
  expect_format(R"({"impl": "a", "ms_median": 1})", "'tokens' is missing");
  expect_format(R"({"impl": "a", "tokens": 1})", "'ms_median' is missing");
  expect_format(R"({"impl": 3, "tokens": 1, "ms_median": 1})", "'impl' is not a text");
  expect_format(R"({"impl": "a", "tokens": 1.5, "ms_median": 1})", "'tokens'");
  expect_format(R"({"impl": "a", "tokens": 0, "ms_median": 1})", "'tokens'");
  expect_format(R"({"impl": "a", "tokens": 18446744073709551615, "ms_median": 1})", "'tokens'");
  expect_format(R"({"impl": "a", "tokens": 1, "ms_median": "1"})", "'ms_median' is not a number");
}

TEST(BenchReport, UnreadableFiles) {
  const TempDir dir;
  expect_error([&] { read_bench_rows(dir / "none.jsonl"); }, ErrorCode::kIo, {"none.jsonl"});
  expect_error([&] { read_bench_rows(dir.path()); }, ErrorCode::kIo, {dir.path().string()});
}

TEST(BenchReport, Csv) {
  EXPECT_EQ(bench_header(BenchFormat::kCsv),
            "shape,impl,routing,tokens,ms_min,ms_median,ms_p90,weight_gb_s,tflops,rel_err,ceiling,"
            "of_ceiling,batch_invariant_ratio");
  BenchRow row = sample_row();
  row.impl = R"(a,"b")";
  EXPECT_EQ(bench_line(row, BenchFormat::kCsv),
            R"(qwen3-30b-a3b,"a,""b""",uniform,16,31.25,33.123456789,40.5,28.4,)"
            "0.30000000000000004,0.0031,28.7,0.866,1.02");
}

TEST(BenchReport, Markdown) {
  const std::string header = bench_header(BenchFormat::kMarkdown);
  EXPECT_EQ(count(header, "\n"), 1U);
  EXPECT_EQ(count(header, "|"), 24U);
  const std::string line = bench_line(sample_row(), BenchFormat::kMarkdown);
  EXPECT_EQ(2 * line.size() + 1, header.size());  // columns stand below their titles
  for (const std::string_view part :
       {" 33.1 |", "28.4 |", "0.300 |", "87 % |", "3.1e-03 |", "1.02x |"})
    EXPECT_THAT(line, HasSubstr(part));
  BenchRow row = timed_row("a|b\nc", 1, 2);
  const std::string unknown = bench_line(row, BenchFormat::kMarkdown);
  EXPECT_THAT(unknown, HasSubstr("a\\|b c"));
  EXPECT_EQ(count(unknown, " - |"), 6U);  // GB/s, TFLOP/s, ceiling, of ceiling, rel err, invariant
}

TEST(BenchReport, FormatNames) {
  EXPECT_EQ(parse_bench_format("md"), BenchFormat::kMarkdown);
  EXPECT_EQ(parse_bench_format("csv"), BenchFormat::kCsv);
  EXPECT_EQ(parse_bench_format("jsonl"), BenchFormat::kJsonLines);
  expect_error([] { parse_bench_format("xml"); }, ErrorCode::kInvalidArgument, {"'xml'"});
}

TEST(BenchReport, SvgHasOneLineForEachSeries) {
  std::vector<BenchRow> rows;
  for (const int64_t tokens : {1, 16, 256, 4096}) {
    BenchRow row = timed_row("ours", tokens, 0.5 * static_cast<double>(tokens));
    row.routing = "uniform";
    row.ceiling_ms = row.ms_median * 0.9;
    rows.push_back(row);
    row.routing = "zipf";  // the same ceiling: drawn once
    rows.push_back(row);
    rows.push_back(timed_row("peer", tokens, 3.0 * static_cast<double>(tokens)));
  }
  const std::string svg = bench_svg(rows, "a title");
  EXPECT_EQ(xml_problem(svg), "");
  EXPECT_EQ(count(svg, "<polyline "), 3U);
  EXPECT_EQ(count(svg, "<path class=\"ceiling\""), 1U);
  EXPECT_EQ(count(svg, "</title>"), 12U);  // a marker for each row
  for (const std::string_view part :
       {"a title", ">ours, uniform<", ">ours, zipf<", ">peer<", ">ceiling of ours, uniform<",
        ">16<", ">4096<", ">0.1<", ">10000<"}) {
    EXPECT_THAT(svg, HasSubstr(part));
  }
  EXPECT_EQ(count(svg, "http"), 1U);  // the name space; nothing is loaded
}

TEST(BenchReport, SvgTellsShapesApartAndKeepsTheLastOfEqualRows) {
  std::vector<BenchRow> rows = {timed_row("a", 1, 1), timed_row("a", 1, 2), timed_row("a", 2, 3)};
  EXPECT_EQ(count(bench_svg(rows, ""), "</title>"), 2U);
  EXPECT_THAT(bench_svg(rows, ""), HasSubstr("a: 1 tokens, 2 ms"));
  rows[1].shape = "other";
  const std::string svg = bench_svg(rows, "");
  EXPECT_EQ(count(svg, "<polyline "), 2U);
  EXPECT_THAT(svg, HasSubstr(">a, other<"));
}

TEST(BenchReport, SvgEscapesText) {
  const std::vector<BenchRow> rows = {timed_row("<b>&\"\x01\xff|", 4, 2)};
  const std::string svg = bench_svg(rows, "</svg>\n\x1b & \"µ\"");
  EXPECT_EQ(xml_problem(svg), "");
  EXPECT_THAT(svg, HasSubstr("&lt;b&gt;&amp;&quot;"));
  EXPECT_THAT(svg, HasSubstr("&lt;/svg&gt;"));
  EXPECT_EQ(svg.find('\xff'), std::string::npos);
}

TEST(BenchReport, SvgOfRowsWithoutAPlace) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<BenchRow> rows = {timed_row("a", 0, 1), timed_row("b", 1, 0),
                                      timed_row("c", 1, kNan), timed_row("d", -1, 1)};
  const std::string none = bench_svg({}, "nothing");
  for (const std::string& svg : {none, bench_svg(rows, "nothing")}) {
    EXPECT_EQ(xml_problem(svg), "");
    EXPECT_EQ(count(svg, "<polyline "), 0U);
    EXPECT_EQ(svg.find("nan"), std::string::npos);
  }
  const std::string one = bench_svg(std::vector{timed_row("one", 7, 1)}, "one point");
  EXPECT_EQ(xml_problem(one), "");
  EXPECT_EQ(count(one, "<polyline "), 1U);
  EXPECT_EQ(one.find("nan"), std::string::npos);
  EXPECT_EQ(one.find("inf"), std::string::npos);
}

}  // namespace
}  // namespace gantry::cli
