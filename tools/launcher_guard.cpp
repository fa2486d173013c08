#include "tools/launcher_guard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/base/log_format.h"

namespace gantry::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kInterval{250};
constexpr std::chrono::seconds kPatience{5};         // of a launcher without children
constexpr std::chrono::milliseconds kRankStep{300};  // rank 0's guard goes first, and alone
constexpr std::chrono::seconds kGiveUp{120};

struct Process {
  std::string name;
  char state = '?';
  pid_t parent = -1;
  unsigned long long start_time = 0;  // tells processes of one id apart

  [[nodiscard]] bool alive() const noexcept { return state != 'Z' && state != 'X'; }
};

// /proc/PID/stat: "PID (NAME) STATE PPID ...", field 22 is the start; the name may hold anything.
std::optional<Process> read_process(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  if (!std::getline(file, text)) return std::nullopt;
  const size_t open = text.find('(');
  const size_t close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open) return std::nullopt;
  Process process;
  process.name = text.substr(open + 1, close - open - 1);
  std::istringstream fields(text.substr(close + 1));
  fields >> process.state >> process.parent;
  std::string skipped;
  for (int field = 5; field < 22; ++field)
    fields >> skipped;
  fields >> process.start_time;
  if (!fields) return std::nullopt;
  return process;
}

bool is_launcher(const Process& process) {
  constexpr std::array<std::string_view, 4> kNames = {"mpirun", "mpiexec", "orterun", "orted"};
  return std::any_of(kNames.begin(), kNames.end(), [&](std::string_view name) {
    return process.name == name || process.name.starts_with(std::string(name) + ".");
  });
}

bool has_children(pid_t parent) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const auto process = read_process(std::atoi(name.c_str()));
    if (process && process->parent == parent && process->alive()) return true;
  }
  return false;
}

// An open file of the job would keep mpirun waiting for the end of its output.
void close_all_but(int kept) {
  std::vector<int> open;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    open.push_back(std::atoi(entry.path().filename().c_str()));
  for (const int file : open) {
    if (file != kept) close(file);
  }
}

void tell(pid_t launcher, int rank, const std::string& name) {
  const std::string text = fmt::format(
      "gantry: rank {}: error: {} (process {}) has not ended for {} s though its ranks have: it "
      "locked itself up when a rank died in MPI_Init, and is ended\n",
      rank, name, launcher, kPatience.count());
  const int file =
      open(fmt::format("/proc/{}/fd/2", launcher).c_str(), O_WRONLY | O_APPEND | O_NOCTTY);
  if (file < 0) return;
  [[maybe_unused]] const auto written = write(file, text.data(), text.size());
  close(file);
}

// Runs in a process of its own.
void watch(int line, pid_t launcher, const Process& known, int rank) {
  char byte = 0;
  ssize_t count = 0;
  do {
    count = read(line, &byte, 1);
  } while (count < 0 && errno == EINTR);
  if (count != 0) return;  // MPI has started
  const auto end = Clock::now() + kGiveUp;
  auto childless_since = Clock::now();
  while (Clock::now() < end) {
    std::this_thread::sleep_for(kInterval);
    const auto now = read_process(launcher);
    if (!now || !now->alive() || now->start_time != known.start_time) return;
    if (has_children(launcher)) childless_since = Clock::now();
    if (Clock::now() - childless_since < kPatience + rank * kRankStep) continue;
    tell(launcher, rank, known.name);
    kill(launcher, SIGKILL);
    return;
  }
}

}  // namespace

LauncherGuard::LauncherGuard(int rank) {
  const pid_t launcher = getppid();
  const auto known = read_process(launcher);
  if (!known || !is_launcher(*known) || std::getenv("GANTRY_KEEP_LAUNCHER") != nullptr) return;
  std::array<int, 2> ends{};
  // A socket: writing to a pipe whose guard is gone would end this process by SIGPIPE.
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) return;
  guard_ = fork();
  if (guard_ == 0) {
    setsid();  // mpirun ends the process groups of its ranks
    std::signal(SIGTERM, SIG_DFL);
    try {
      close_all_but(ends[0]);
      watch(ends[0], launcher, *known, rank);
    } catch (...) {
      // Nobody to tell; the launcher stays.
    }
    _exit(0);
  }
  close(ends[0]);
  line_ = ends[1];
  if (guard_ < 0) {
    log(LogLevel::kWarn, "cannot fork: if a rank dies in MPI_Init, {} may not end", known->name);
    close(line_);
  }
}

LauncherGuard::~LauncherGuard() {
  if (guard_ <= 0) return;
  const char done = 1;
  const auto written = send(line_, &done, 1, MSG_NOSIGNAL);
  close(line_);
  if (written == 1) waitpid(guard_, nullptr, 0);
}

}  // namespace gantry::cli
