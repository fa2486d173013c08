#include "loader/load_report.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {

std::string_view to_string(FindingKind kind) noexcept {
  switch (kind) {
    case FindingKind::kMissing:
      return "missing";
    case FindingKind::kDuplicate:
      return "duplicate";
    case FindingKind::kUnknown:
      return "unknown";
    case FindingKind::kShape:
      return "shape";
    case FindingKind::kDType:
      return "dtype";
    case FindingKind::kNonFinite:
      return "non_finite";
    case FindingKind::kCoverage:
      return "coverage";
    case FindingKind::kPrefix:
      return "prefix";
    case FindingKind::kEncoding:
      return "encoding";
    case FindingKind::kValue:
      return "value";
    case FindingKind::kReference:
      return "reference";
  }
  return "finding";
}

void LoadReport::add(Finding finding) {
  const std::scoped_lock lock(mutex_);
  findings_.push_back(std::move(finding));
}

void LoadReport::note(std::string text) {
  const std::scoped_lock lock(mutex_);
  if (std::find(notes_.begin(), notes_.end(), text) == notes_.end()) {
    notes_.push_back(std::move(text));
  }
}

std::vector<Finding> LoadReport::findings() const {
  const std::scoped_lock lock(mutex_);
  std::vector<Finding> sorted = findings_;
  const auto key = [](const Finding& f) {
    return std::tie(f.layer, f.expert, f.tensor, f.kind, f.message);
  };
  std::sort(sorted.begin(), sorted.end(),
            [&](const Finding& a, const Finding& b) { return key(a) < key(b); });
  // Ranks that share a tensor find the same thing: say it once.
  sorted.erase(std::unique(sorted.begin(), sorted.end(),
                           [&](const Finding& a, const Finding& b) { return key(a) == key(b); }),
               sorted.end());
  return sorted;
}

std::string summarize(const LoadReport& report, size_t max_lines) {
  const std::vector<Finding> findings = report.findings();
  std::string text;
  for (size_t i = 0; i < std::min(findings.size(), max_lines); ++i) {
    text += fmt::format("{}[{}] {}", i == 0 ? "" : "\n", to_string(findings[i].kind),
                        findings[i].message);
  }
  if (findings.size() > max_lines) {
    text += fmt::format("\n... and {} more", findings.size() - max_lines);
  }
  return text;
}

}  // namespace gantry
