#pragma once

// What the subcommands of `gantry` share: options, output, progress, exit codes.

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/parallel_for.h"
#include "loader/load_report.h"
#include "loader/moe_config.h"
#include "parallel/expert_placement.h"
#include "parallel/parallel_config.h"

namespace CLI {
class App;
class Option;
}

namespace gantry::cli {

/// Exit codes: a contract that scripts rely on.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFinding = 1;  ///< something is wrong with the checkpoint or the numbers
inline constexpr int kExitUsage = 2;    ///< the command line makes no sense
inline constexpr int kExitEnvironment = 3;  ///< I/O, memory, a missing device

/// The exit code of a command that failed with an error of this code.
int exit_code_of(ErrorCode code) noexcept;

/// What a command threw.
struct CommandFailure {
  ErrorCode code = ErrorCode::kInternal;
  std::string text;  ///< "kIo: cannot open ..."
};
CommandFailure describe_failure(const std::exception_ptr& error);

/// Options of every subcommand.
struct CommonOptions {
  bool json = false;
  bool quiet = false;
  bool no_progress = false;
  bool silent = false;  ///< another rank prints
  int threads = 0;

  [[nodiscard]] Threads make_threads() const { return {.count = threads, .executor = {}}; }
};

void add_common_options(CLI::App& app, CommonOptions& options);

/// How ranks are started and how long they wait: see rank_session.h.
struct LaunchOptions {
  std::string ranks = "auto";
  int rank = -1;
  int world_size = -1;
  double timeout_seconds = 60.0;
};

/// --tp, --ep, --dp, --placement.
struct ParallelOptions {
  int tp = 1;
  int ep = 1;
  int dp = 1;
  std::string placement = "linear";  ///< or round_robin, or a placement file
  LaunchOptions launch;
  // Whether --tp and --ep were given.
  const CLI::Option* tp_option = nullptr;
  const CLI::Option* ep_option = nullptr;

  /// Rank 0's view. @throws Error kInvalidArgument
  [[nodiscard]] ParallelConfig config() const;
  /// @throws Error kInvalidArgument, or as read_placement_file does
  [[nodiscard]] ExpertPlacement placement_of(const MoeModelConfig& model) const;
};

void add_parallel_options(CLI::App& app, ParallelOptions& options);

/// Adds --allow, which may be given several times; CLI11 refuses names that cannot be allowed.
void add_allow_option(CLI::App& app, std::vector<std::string>& names);

/// The kinds that --allow named.
std::vector<FindingKind> parse_allowed(const std::vector<std::string>& names);

/// Writes results: lines of text for people, or one JSON object a line. Logs go to stderr.
class Output {
 public:
  explicit Output(const CommonOptions& options)
      : json_(options.json), quiet_(options.quiet), silent_(options.silent) {}

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
  bool silent_;
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
