#include "loader/load_report.h"

#include <gtest/gtest.h>

#include "kernels/base/log.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

Finding finding(FindingKind kind, int expert) {
  Finding f;
  f.kind = kind;
  f.message = "something about expert " + std::to_string(expert);
  f.layer = 0;
  f.expert = expert;
  return f;
}

/// Log lines while it lives.
class LogCapture {
 public:
  LogCapture() {
    set_log_sink([this](LogLevel level, std::string_view message) {
      if (level == LogLevel::kWarn) lines.emplace_back(message);
    });
  }
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;
  ~LogCapture() { set_log_sink({}); }

  std::vector<std::string> lines;
};

TEST(LoadReportAllowTest, AFindingOfAnAllowedKindIsALoggedWarning) {
  const LogCapture log;
  LoadReport report;
  report.allow(FindingKind::kZeroScale);
  report.add(finding(FindingKind::kZeroScale, 3));
  EXPECT_TRUE(report.ok());
  EXPECT_TRUE(report.findings().empty());
  ASSERT_EQ(report.warnings().size(), 1U);
  EXPECT_EQ(report.warnings()[0].expert, 3);
  ASSERT_EQ(log.lines.size(), 1U);
  EXPECT_NE(log.lines[0].find("zero_scale"), std::string::npos);
  EXPECT_NE(log.lines[0].find("expert 3"), std::string::npos);
}

TEST(LoadReportAllowTest, OtherKindsStayFindings) {
  LoadReport report;
  report.allow(FindingKind::kZeroScale);
  report.add(finding(FindingKind::kNegativeScale, 3));
  EXPECT_FALSE(report.ok());
  EXPECT_TRUE(report.warnings().empty());
}

TEST(LoadReportAllowTest, WhatWasFoundBeforeIsAllowedToo) {
  const LogCapture log;
  LoadReport report;
  report.add(finding(FindingKind::kInputScale, 1));
  report.add(finding(FindingKind::kMissing, 2));
  report.allow(FindingKind::kInputScale);
  ASSERT_EQ(report.findings().size(), 1U);
  EXPECT_EQ(report.findings()[0].kind, FindingKind::kMissing);
  EXPECT_EQ(report.warnings().size(), 1U);
  EXPECT_EQ(log.lines.size(), 1U);
}

TEST(LoadReportAllowTest, RanksThatFindTheSameWarnOnce) {
  const LogCapture log;
  LoadReport report;
  report.allow(FindingKind::kZeroScale);
  for (int rank = 0; rank < 4; ++rank)
    report.add(finding(FindingKind::kZeroScale, 7));
  EXPECT_EQ(report.warnings().size(), 1U);
  EXPECT_EQ(log.lines.size(), 1U);
}

TEST(LoadReportAllowTest, StructureCannotBeAllowed) {
  LoadReport report;
  for (const FindingKind kind :
       {FindingKind::kMissing, FindingKind::kDuplicate, FindingKind::kUnknown, FindingKind::kShape,
        FindingKind::kDType, FindingKind::kCoverage, FindingKind::kPrefix, FindingKind::kEncoding,
        FindingKind::kValue, FindingKind::kReference}) {
    expect_error([&] { report.allow(kind); }, ErrorCode::kInvalidArgument,
                 {to_string(kind), "zero_scale", "input_scale"});
    expect_error([&] { (void)parse_allowable_kind(to_string(kind)); }, ErrorCode::kInvalidArgument,
                 {to_string(kind), "non_finite"});
  }
  expect_error([&] { (void)parse_allowable_kind("everything"); }, ErrorCode::kInvalidArgument,
               {"everything", "negative_scale", "underflow_scale"});
}

TEST(LoadReportAllowTest, NamesReadBack) {
  EXPECT_EQ(allowable_kinds().size(), 5U);
  for (const FindingKind kind : allowable_kinds())
    EXPECT_EQ(parse_allowable_kind(to_string(kind)), kind);
}

}  // namespace
}  // namespace gantry::test
