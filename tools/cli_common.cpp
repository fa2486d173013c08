#include "tools/cli_common.h"

#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <new>

#include "kernels/base/check.h"
#include "loader/family_spec.h"
#include "loader/placement_file.h"
#include "tools/balance_options.h"

namespace gantry::cli {

int exit_code_of(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return kExitUsage;
    case ErrorCode::kFormat:
    case ErrorCode::kUnsupported:
      return kExitFinding;
    default:
      return kExitEnvironment;
  }
}

CommandFailure describe_failure(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& failure) {
    return {failure.code(), fmt::format("{}: {}", to_string(failure.code()), failure.what())};
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, "out of memory"};
  } catch (const std::exception& failure) {
    return {ErrorCode::kInternal, failure.what()};
  } catch (...) {
    return {ErrorCode::kInternal, "unknown exception"};
  }
}

void add_common_options(CLI::App& app, CommonOptions& options) {
  app.add_flag("--json", options.json, "one JSON object a line on stdout");
  app.add_flag("--quiet,-q", options.quiet, "only the result and errors");
  app.add_flag("--no-progress", options.no_progress, "no progress on stderr");
  app.add_option("--threads", options.threads, "threads (0: every CPU of this process)")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
}

void add_parallel_options(CLI::App& app, ParallelOptions& options) {
  options.tp_option =
      app.add_option("--tp", options.tp, "tensor parallel size")->capture_default_str();
  options.ep_option =
      app.add_option("--ep", options.ep,
                     "expert parallel size (mpirun without --tp and --ep: all ranks)")
          ->capture_default_str();
  app.add_option("--dp", options.dp, "token groups among the EP ranks")->capture_default_str();
  app.add_option("--placement", options.placement,
                 "linear, round_robin, or a placement file of SGLang, vLLM or TensorRT-LLM (JSON)")
      ->capture_default_str();
}

void add_allow_option(CLI::App& app, std::vector<std::string>& names) {
  std::vector<std::string> possible;
  for (const FindingKind kind : allowable_kinds())
    possible.emplace_back(to_string(kind));
  app.add_option("--allow", names,
                 "findings of this kind become warnings (may be repeated): numbers that you "
                 "know to be harmless")
      ->allow_extra_args(false)
      ->check(CLI::IsMember(possible));
}

std::vector<FindingKind> parse_allowed(const std::vector<std::string>& names) {
  std::vector<FindingKind> kinds;
  kinds.reserve(names.size());
  for (const std::string& name : names)
    kinds.push_back(parse_allowable_kind(name));
  return kinds;
}

ParallelConfig ParallelOptions::config() const {
  const ParallelConfig config{.tp_size = tp, .ep_size = ep, .dp_size = dp, .rank = 0};
  validate(config);
  return config;
}

ExpertPlacement ParallelOptions::placement_of(const MoeModelConfig& model) const {
  return cli::placement_of(placement, placed_model(model));
}

void Output::text(std::string_view line) const {
  if (!json_ && !quiet_) result(line);
}

void Output::result(std::string_view line) const {
  if (json_ || silent_) return;
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);
}

void Output::event(std::string_view event, const nlohmann::ordered_json& fields) const {
  if (!json_ || silent_) return;
  nlohmann::ordered_json object;
  object["event"] = event;
  object.update(fields);
  const std::string line =
      object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fputc('\n', stdout);
}

void Output::report(const LoadReport& report, size_t max_lines) const {
  for (const std::string& note : report.notes()) {
    text(fmt::format("note: {}", note));
    event("note", {{"message", note}});
  }
  const auto events = [&](std::string_view name, const std::vector<Finding>& findings) {
    for (const Finding& finding : findings) {
      event(name, {{"kind", to_string(finding.kind)},
                   {"message", finding.message},
                   {"tensor", finding.tensor},
                   {"file", finding.file},
                   {"layer", finding.layer},
                   {"expert", finding.expert},
                   {"part", finding.part},
                   {"element", finding.element}});
    }
  };
  events("finding", report.findings());
  events("warning", report.warnings());
  if (!report.ok()) result(summarize(report, max_lines));
}

ProgressMeter::ProgressMeter(std::string what, int64_t total_bytes, const CommonOptions& options)
    : what_(std::move(what)),
      total_bytes_(total_bytes),
      enabled_(!options.quiet && !options.no_progress && !options.silent),
      terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

ProgressMeter::~ProgressMeter() {
  const std::scoped_lock lock(mutex_);
  if (enabled_ && (printed_ || terminal_)) print(/*last=*/true);
}

void ProgressMeter::add(int64_t bytes) {
  const std::scoped_lock lock(mutex_);
  done_bytes_ += bytes;
  if (!enabled_) return;
  const auto now = std::chrono::steady_clock::now();
  const auto interval =
      terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(3000);
  if (now - last_ < interval) return;
  last_ = now;
  print(/*last=*/false);
}

void ProgressMeter::print(bool last) {
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  const double rate = seconds > 0 ? static_cast<double>(done_bytes_) / seconds : 0.0;
  const double left =
      rate > 0 ? static_cast<double>(std::max<int64_t>(0, total_bytes_ - done_bytes_)) / rate : 0.0;
  const double percent = total_bytes_ > 0 ? 100.0 * static_cast<double>(done_bytes_) /
                                                static_cast<double>(total_bytes_)
                                          : 100.0;
  const std::string line = fmt::format(
      "{} {} / {} ({:.0f} %) {:.0f} MB/s, {} in memory, {}", what_, human_bytes(done_bytes_),
      human_bytes(total_bytes_), percent, rate / 1e6, human_bytes(rss_bytes()),
      last ? fmt::format("{:.1f} s", seconds) : fmt::format("{:.0f} s left", left));
  if (terminal_) {
    fmt::print(stderr, "\r\x1b[K{}{}", line, last ? "\n" : "");
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
  printed_ = true;
}

int64_t rss_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  long long total = 0;
  long long resident = 0;
  const int found = std::fscanf(file, "%lld %lld", &total, &resident);
  std::fclose(file);
  return found == 2 ? resident * sysconf(_SC_PAGESIZE) : 0;
}

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

std::string human_bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (value >= 1e9) return fmt::format("{:.2f} GB", value / 1e9);
  if (value >= 1e6) return fmt::format("{:.1f} MB", value / 1e6);
  if (value >= 1e3) return fmt::format("{:.1f} KB", value / 1e3);
  return fmt::format("{} B", bytes);
}

LayerRange parse_layer_range(const std::string& text) {
  if (text.empty()) return {};
  const size_t dash = text.find('-');
  const std::optional<int> first = parse_index(text.substr(0, dash));
  const std::optional<int> last =
      dash == std::string::npos ? first : parse_index(text.substr(dash + 1));
  GANTRY_CHECK(first && last && *first <= *last, ErrorCode::kInvalidArgument,
               "--layers: expected N or A-B, found '{}'", text);
  return {*first, *last};
}

}  // namespace gantry::cli
