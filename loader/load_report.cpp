#include "loader/load_report.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"

namespace gantry {
namespace {

constexpr std::array<FindingKind, 5> kAllowable = {
    FindingKind::kNonFinite, FindingKind::kZeroScale, FindingKind::kUnderflowScale,
    FindingKind::kNegativeScale, FindingKind::kInputScale};

bool is_allowable(FindingKind kind) {
  return std::find(kAllowable.begin(), kAllowable.end(), kind) != kAllowable.end();
}

[[noreturn]] void fail_not_allowable(std::string_view name) {
  std::string names;
  for (const FindingKind kind : kAllowable) {
    if (!names.empty()) names += ", ";
    names += to_string(kind);
  }
  fail(ErrorCode::kInvalidArgument, "allow: expected one of {}, found '{}'", names, name);
}

void log_allowed(const Finding& finding) {
  log(LogLevel::kWarn, "[{}] allowed: {}", to_string(finding.kind), finding.message);
}

}  // namespace

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
    case FindingKind::kZeroScale:
      return "zero_scale";
    case FindingKind::kUnderflowScale:
      return "underflow_scale";
    case FindingKind::kNegativeScale:
      return "negative_scale";
    case FindingKind::kInputScale:
      return "input_scale";
  }
  return "finding";
}

std::span<const FindingKind> allowable_kinds() noexcept { return kAllowable; }

FindingKind parse_allowable_kind(std::string_view name) {
  for (const FindingKind kind : kAllowable) {
    if (to_string(kind) == name) return kind;
  }
  fail_not_allowable(name);
}

bool FindingOrder::operator()(const Finding& a, const Finding& b) const noexcept {
  const auto key = [](const Finding& f) {
    return std::tie(f.layer, f.expert, f.tensor, f.kind, f.message);
  };
  return key(a) < key(b);
}

void LoadReport::add(Finding finding) {
  {
    const std::scoped_lock lock(mutex_);
    if (!allowed_.contains(finding.kind)) {
      findings_.push_back(std::move(finding));
      return;
    }
    if (!warnings_.insert(finding).second) return;  // another rank said so
  }
  log_allowed(finding);  // without the lock: the sink is the caller's code
}

void LoadReport::allow(FindingKind kind) {
  if (!is_allowable(kind)) fail_not_allowable(to_string(kind));
  std::vector<Finding> news;
  {
    const std::scoped_lock lock(mutex_);
    allowed_.insert(kind);
    const auto allowed = std::stable_partition(findings_.begin(), findings_.end(),
                                               [&](const Finding& f) { return f.kind != kind; });
    for (auto finding = allowed; finding != findings_.end(); ++finding) {
      if (warnings_.insert(*finding).second) news.push_back(*finding);
    }
    findings_.erase(allowed, findings_.end());
  }
  for (const Finding& finding : news)
    log_allowed(finding);
}

void LoadReport::note(std::string text) {
  const std::scoped_lock lock(mutex_);
  if (std::find(notes_.begin(), notes_.end(), text) == notes_.end()) {
    notes_.push_back(std::move(text));
  }
}

bool LoadReport::allows(FindingKind kind) const {
  const std::scoped_lock lock(mutex_);
  return allowed_.contains(kind);
}

std::vector<Finding> LoadReport::findings() const {
  const std::scoped_lock lock(mutex_);
  std::vector<Finding> sorted = findings_;
  std::sort(sorted.begin(), sorted.end(), FindingOrder());
  // Ranks that share a tensor find the same thing: say it once.
  const auto same = [](const Finding& a, const Finding& b) { return !FindingOrder()(a, b); };
  sorted.erase(std::unique(sorted.begin(), sorted.end(), same), sorted.end());
  return sorted;
}

std::vector<Finding> LoadReport::warnings() const {
  const std::scoped_lock lock(mutex_);
  return {warnings_.begin(), warnings_.end()};
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
