#pragma once

// What the subcommands of `gantry` share: options, output, progress, exit codes.

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/parallel_for.h"
#include "loader/load_report.h"
#include "parallel/parallel_config.h"

namespace CLI {
class App;
}

namespace gantry::cli {

/// Exit codes: a contract that scripts rely on.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFinding = 1;  ///< something is wrong with the checkpoint or the numbers
inline constexpr int kExitUsage = 2;    ///< the command line makes no sense
inline constexpr int kExitEnvironment = 3;  ///< I/O, memory, a missing device

/// Options of every subcommand.
struct CommonOptions {
  bool json = false;
  bool quiet = false;
  bool no_progress = false;
  int threads = 0;

  [[nodiscard]] Threads make_threads() const { return {.count = threads, .executor = {}}; }
};

void add_common_options(CLI::App& app, CommonOptions& options);

/// --tp, --ep, --dp, --placement.
struct ParallelOptions {
  int tp = 1;
  int ep = 1;
  int dp = 1;
  std::string placement = "linear";

  /// Rank 0's view. @throws Error kInvalidArgument
  [[nodiscard]] ParallelConfig config() const;
  [[nodiscard]] Placement parsed_placement() const { return parse_placement(placement); }
};

void add_parallel_options(CLI::App& app, ParallelOptions& options);

/// Adds --allow, which may be given several times; CLI11 refuses names that cannot be allowed.
void add_allow_option(CLI::App& app, std::vector<std::string>& names);

/// The kinds that --allow named.
std::vector<FindingKind> parse_allowed(const std::vector<std::string>& names);

/// Writes results: lines of text for people, or one JSON object a line. Logs go to stderr.
class Output {
 public:
  explicit Output(const CommonOptions& options) : json_(options.json), quiet_(options.quiet) {}

  /// A line for people; left out with --json or --quiet.
  void text(std::string_view line) const;
  /// A line that --quiet keeps.
  void result(std::string_view line) const;
  /// An object for programs; left out without --json. `event` names its kind.
  void event(std::string_view event, const nlohmann::ordered_json& fields) const;
  /// Findings and notes of a report, in both forms; at most `max_lines` findings as text.
  void report(const LoadReport& report, size_t max_lines) const;

  [[nodiscard]] bool json() const noexcept { return json_; }

 private:
  bool json_;
  bool quiet_;
};

/// Bytes done, rate and time left: one line that is rewritten on a terminal, else a line every few
/// seconds. Goes to stderr. Thread-safe.
class ProgressMeter {
 public:
  ProgressMeter(std::string what, int64_t total_bytes, const CommonOptions& options);
  ~ProgressMeter();
  ProgressMeter(const ProgressMeter&) = delete;
  ProgressMeter& operator=(const ProgressMeter&) = delete;

  void add(int64_t bytes);

 private:
  void print(bool last);

  std::mutex mutex_;
  std::string what_;
  int64_t total_bytes_;
  int64_t done_bytes_ = 0;
  bool enabled_;
  bool terminal_;
  bool printed_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_;
};

/// Resident memory of this process, now.
int64_t rss_bytes();

/// Peak resident memory of this process.
int64_t peak_rss_bytes();

/// "1.2 GB", "48 KB"
std::string human_bytes(int64_t bytes);

/// Parses "3" or "3-7" or "" (everything).
struct LayerRange {
  int first = 0;
  int last = 1 << 30;
  [[nodiscard]] bool contains(int layer) const noexcept { return layer >= first && layer <= last; }
};
LayerRange parse_layer_range(const std::string& text);

}  // namespace gantry::cli
