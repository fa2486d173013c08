#include "loader/load_ledger.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace gantry::test {
namespace {

LoadLedger::Entry entry(int64_t units, int64_t unit_bytes = 2) {
  return {.layer = 4,
          .expert = 7,
          .slot = 1,
          .part = "w1 weight",
          .tensor = "experts.7.w1.weight",
          .units = units,
          .unit_bytes = unit_bytes};
}

/// Findings of one destination of `units` after these writes.
std::vector<Finding> findings_of(int64_t units,
                                 const std::vector<std::pair<int64_t, int64_t>>& writes) {
  LoadLedger ledger;
  const int64_t id = ledger.expect(entry(units));
  for (const auto& [begin, end] : writes) {
    ledger.record(id, begin, end);
  }
  LoadReport report;
  ledger.finish(report);
  return report.findings();
}

std::string problem_of(int64_t units, const std::vector<std::pair<int64_t, int64_t>>& writes) {
  const std::vector<Finding> findings = findings_of(units, writes);
  return findings.empty() ? "" : findings[0].message;
}

TEST(LoadLedgerTest, IsSilentWhenEveryUnitWasWrittenOnce) {
  EXPECT_TRUE(findings_of(8, {{0, 8}}).empty());
  EXPECT_TRUE(findings_of(8, {{0, 3}, {3, 5}, {5, 8}}).empty());
}

TEST(LoadLedgerTest, DoesNotCareAboutTheOrderOfWrites) {
  std::vector<std::pair<int64_t, int64_t>> writes = {{0, 1}, {1, 4}, {4, 5}, {5, 8}};
  do {
    EXPECT_TRUE(findings_of(8, writes).empty());
  } while (std::next_permutation(writes.begin(), writes.end()));
}

TEST(LoadLedgerTest, FindsWhatWasNeverWritten) {
  EXPECT_NE(problem_of(8, {}).find("0 to 8 not written"), std::string::npos);
}

TEST(LoadLedgerTest, FindsAGapAtTheBegin) {
  EXPECT_NE(problem_of(8, {{2, 8}}).find("0 to 2 not written"), std::string::npos);
}

TEST(LoadLedgerTest, FindsAGapInTheMiddle) {
  EXPECT_NE(problem_of(8, {{5, 8}, {0, 3}}).find("3 to 5 not written"), std::string::npos);
}

TEST(LoadLedgerTest, FindsAGapAtTheEnd) {
  EXPECT_NE(problem_of(8, {{0, 7}}).find("7 to 8 not written"), std::string::npos);
}

TEST(LoadLedgerTest, FindsAnOverlap) {
  EXPECT_NE(problem_of(8, {{0, 5}, {3, 8}}).find("3 to 5 written twice"), std::string::npos);
}

TEST(LoadLedgerTest, FindsAWriteInsideAnother) {
  EXPECT_NE(problem_of(8, {{0, 8}, {2, 4}}).find("2 to 4 written twice"), std::string::npos);
}

TEST(LoadLedgerTest, FindsTheSameWriteTwice) {
  EXPECT_NE(problem_of(8, {{0, 8}, {0, 8}}).find("0 to 8 written twice"), std::string::npos);
}

TEST(LoadLedgerTest, FindsAWriteBehindTheEnd) {
  EXPECT_NE(problem_of(8, {{0, 10}}).find("8 to 10 written behind the end"), std::string::npos);
}

TEST(LoadLedgerTest, IgnoresWritesOfNothing) {
  EXPECT_TRUE(findings_of(8, {{4, 4}, {0, 8}, {0, 0}}).empty());
}

TEST(LoadLedgerTest, NamesTheDestination) {
  const std::vector<Finding> findings = findings_of(8, {});
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].kind, FindingKind::kCoverage);
  EXPECT_EQ(findings[0].layer, 4);
  EXPECT_EQ(findings[0].expert, 7);
  EXPECT_EQ(findings[0].part, "w1 weight");
  EXPECT_EQ(findings[0].tensor, "experts.7.w1.weight");
  EXPECT_NE(findings[0].message.find("slot 1"), std::string::npos);
}

TEST(LoadLedgerTest, AddsOneFindingADestination) {
  LoadLedger ledger;
  const int64_t whole = ledger.expect(entry(4));
  LoadLedger::Entry other = entry(4);
  other.part = "w2 weight";
  const int64_t holes = ledger.expect(other);
  ledger.record(whole, 0, 4);
  ledger.record(holes, 1, 2);
  ledger.record(holes, 1, 3);
  LoadReport report;
  ledger.finish(report);
  ASSERT_EQ(report.findings().size(), 1u);
  EXPECT_EQ(report.findings()[0].part, "w2 weight");
}

TEST(LoadLedgerTest, CountsBytes) {
  LoadLedger ledger;
  const int64_t a = ledger.expect(entry(4, 10));
  const int64_t b = ledger.expect(entry(3, 100));
  EXPECT_EQ(ledger.expected_bytes(), 340);
  EXPECT_EQ(ledger.written_bytes(), 0);
  ledger.record(a, 0, 2);
  ledger.record(b, 0, 3);
  EXPECT_EQ(ledger.written_bytes(), 320);
}

TEST(LoadLedgerTest, TakesRecordsOfManyThreads) {
  constexpr int64_t kThreads = 4;
  constexpr int64_t kUnits = 1000;
  LoadLedger ledger;
  std::vector<int64_t> ids;
  for (int i = 0; i < 8; ++i)
    ids.push_back(ledger.expect(entry(kUnits)));
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t unit = t; unit < kUnits; unit += kThreads) {
        for (const int64_t id : ids)
          ledger.record(id, unit, unit + 1);
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  LoadReport report;
  ledger.finish(report);
  EXPECT_TRUE(report.ok()) << summarize(report, 3);
  EXPECT_EQ(ledger.written_bytes(), ledger.expected_bytes());
}

}  // namespace
}  // namespace gantry::test
