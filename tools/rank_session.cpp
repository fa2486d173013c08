#include "tools/rank_session.h"

#include <sched.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/checkpoint_agreement.h"
#include "parallel/rank_vote.h"
#include "tools/current_work.h"
#include "tools/launcher_guard.h"
#include "tools/watchdog.h"

namespace gantry::cli {
namespace {

// After an abort: time for every rank to say why before the launcher ends the slower ones.
constexpr std::chrono::milliseconds kLastWords{500};
constexpr std::chrono::milliseconds kAbortPatience{3000};

RankEnvironment find_ranks(const LaunchOptions& options) {
  auto claims = read_rank_claims([](const char* name) { return std::getenv(name); });
  GANTRY_CHECK(!claims.empty() || options.ranks != "mpi", ErrorCode::kInvalidArgument,
               "--ranks mpi: no launcher started this process (mpirun, srun --mpi=pmix)");
  if (options.rank >= 0 || options.world_size >= 0) {
    GANTRY_CHECK(!claims.empty(), ErrorCode::kInvalidArgument,
                 "--rank, --world-size: no launcher started this process (mpirun, srun "
                 "--mpi=pmix), so there are no other ranks to find");
    claims.push_back({.source = "flags (--rank, --world-size)",
                      .rank = options.rank,
                      .size = options.world_size});
  }
  return combine_rank_claims(std::move(claims));
}

void log_as_rank(int rank) {
  set_log_sink([rank](LogLevel level, std::string_view message) {
    if (rank != 0 && level != LogLevel::kError) return;
    static constexpr std::array<const char*, 4> kNames = {"debug", "info", "warning", "error"};
    fmt::print(stderr, "gantry: rank {}: {}: {}\n", rank, kNames[static_cast<size_t>(level)],
               message);
  });
}

void choose_sizes(ParallelOptions& parallel, const RankEnvironment& world) {
  const bool given = parallel.tp_option->count() + parallel.ep_option->count() > 0;
  if (!given && world.size > 1) {
    parallel.ep = world.size;
    log(LogLevel::kInfo, "neither --tp nor --ep given: --ep {}, one part of the experts a rank",
        parallel.ep);
  }
  GANTRY_CHECK(parallel.config().world_size() == world.size, ErrorCode::kInvalidArgument,
               "--tp {} x --ep {} are {} ranks, but {} were started: {}. (--ranks threads "
               "simulates ranks in one process)",
               parallel.tp, parallel.ep, parallel.config().world_size(), world.size,
               world.describe());
}

// The host and the CPUs that this process may run on: ranks with the same ones share them.
std::string describe_cpus() {
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  std::string text = host.data();
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return text;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) text += fmt::format(" {}", cpu);
  }
  return text;
}

}  // namespace

std::string flavour_name(Avx512Dot flavour) { return flavour == Avx512Dot::kDot ? "bf16" : "fma"; }

void add_launch_options(CLI::App& app, LaunchOptions& options) {
  app.add_option("--ranks", options.ranks,
                 "threads: of this process; mpi: processes of a launcher; auto: what started us")
      ->check(CLI::IsMember({"auto", "threads", "mpi"}))
      ->capture_default_str();
  app.add_option("--rank", options.rank, "this process' rank: compared with the launcher's");
  app.add_option("--world-size", options.world_size,
                 "number of ranks: compared with the launcher's");
  app.add_option("--collective-timeout", options.timeout_seconds,
                 "seconds that a rank waits for another one without progress")
      ->check(CLI::Range(0.1, 86400.0))
      ->envname("GANTRY_COLLECTIVE_TIMEOUT")
      ->capture_default_str();
}

RankSession::RankSession() = default;
RankSession::~RankSession() = default;

void RankSession::start(ParallelOptions& parallel, CommonOptions& common) {
  const LaunchOptions& launch = parallel.launch;
  communicator_options_.timeout =
      std::chrono::milliseconds(static_cast<int64_t>(launch.timeout_seconds * 1e3));
  const RankEnvironment world = launch.ranks == "threads" ? RankEnvironment() : find_ranks(launch);
  if (!world.launched()) {
    print_work_on_sigterm("gantry: ");
    return;
  }
  local_rank_ = world.local_rank;
  log_as_rank(world.rank);
  print_work_on_sigterm(fmt::format("gantry: rank {}: ", world.rank));
  common.silent = world.rank != 0;
  choose_sizes(parallel, world);
  GANTRY_CHECK(MpiSession::available(), ErrorCode::kUnsupported,
               "{}, but this gantry was built without MPI", world.describe());
  const std::string reason = world.reason_not_joined();
  GANTRY_CHECK(reason.empty(), ErrorCode::kInvalidArgument, "{}", reason);
  note_work("start-up", -1);
  {
    const LauncherGuard guard(world.rank);
    const Watchdog watchdog(lasts_longer_than(communicator_options_.timeout, "starting MPI"),
                            kExitEnvironment);
    mpi_ = std::make_unique<MpiSession>();
  }
  GANTRY_CHECK(
      mpi_->rank() == world.rank && mpi_->size() == world.size, ErrorCode::kInvalidArgument,
      "the launcher says {}, but MPI started as rank {} of {}: it is not a launcher of this "
      "gantry's MPI; start with its mpirun, or with srun --mpi=pmix",
      world.describe(), mpi_->rank(), mpi_->size());
  world_ = mpi_->make_world(communicator_options_);
  note_communicator(world_.get());
  stall_watchdog_ = std::make_unique<Watchdog>(stands_still(*world_, communicator_options_.timeout),
                                               kExitEnvironment);
  share_cpus(common);
  log(LogLevel::kInfo, "{} ranks over MPI, {} thread(s) each, time-out {:.1f} s", world.size,
      common.make_threads().resolved_count(), launch.timeout_seconds);
}

void RankSession::share_cpus(CommonOptions& common) const {
  const std::string own = describe_cpus();
  const std::vector<std::string> all = gather_texts(*world_, own);
  if (common.threads > 0) return;
  const auto sharers = std::count(all.begin(), all.end(), own);
  common.threads = std::max(1, available_cpus() / static_cast<int>(sharers));
  if (available_cpus() == 1 && std::thread::hardware_concurrency() > 1) {
    log(LogLevel::kWarn, "this rank is bound to one CPU of {}: mpirun --bind-to none gives it more",
        std::thread::hardware_concurrency());
  }
}

RankSetup RankSession::setup() const {
  RankSetup setup;
  setup.world = world_.get();
  setup.on_phase = [](const char* phase, int layer) { note_work(phase, layer); };
  return setup;
}

Avx512Dot RankSession::agreed_avx512_dot() const {
  const Avx512Dot own = avx512_dot_choice().flavour;
  if (!world_) return own;
  Avx512Dot first = own;
  world_->broadcast(std::as_writable_bytes(std::span(&first, 1)), 0);
  const bool decided = std::getenv("GANTRY_AVX512_DOT") != nullptr;
  const bool possible = first == Avx512Dot::kFma || host_isas().contains(Isa::kAvx512Bf16);
  if (first == own || decided || !possible) return own;
  log(LogLevel::kInfo, "AVX-512 flavour: rank 0's probe decides, not this rank's ({})",
      avx512_dot_choice().reason);
  return first;
}

void RankSession::check_agreement(const ParallelOptions& parallel, const Checkpoint* checkpoint,
                                  std::vector<AgreementItem> more) const {
  if (!world_) return;
  note_work("start-up agreement", -1);
  std::vector<AgreementItem> items = {{"version", GANTRY_VERSION},
                                      {"tp", std::to_string(parallel.tp)},
                                      {"ep", std::to_string(parallel.ep)},
                                      {"dp", std::to_string(parallel.dp)},
                                      {"instruction sets", to_string(host_isas())}};
  if (checkpoint != nullptr) {
    for (AgreementItem& item : checkpoint_items(*checkpoint))
      items.push_back(std::move(item));
  }
  std::move(more.begin(), more.end(), std::back_inserter(items));
  gantry::check_agreement(*world_, items);
}

void RankSession::print_figures(const Output& output, const LoadStats& own) const {
  if (!world_) return;
  const RankFigures mine{.bytes_read = own.bytes_read,
                         .bytes_owned = own.bytes_owned,
                         .peak_rss_bytes = peak_rss_bytes(),
                         .bytes_sent = world_->traffic().bytes_sent,
                         .bytes_received = world_->traffic().bytes_received};
  const std::vector<RankFigures> all = gather_values(*world_, mine);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const RankFigures& figures = all[rank];
    output.text(fmt::format(
        "  rank {:<3} read {:>9} for {:>9} owned ({:.3f}x), peak memory {:>9}, sent {:>9}, "
        "received {:>9}",
        rank, human_bytes(figures.bytes_read), human_bytes(figures.bytes_owned),
        static_cast<double>(figures.bytes_read) /
            static_cast<double>(std::max<int64_t>(1, figures.bytes_owned)),
        human_bytes(figures.peak_rss_bytes), human_bytes(figures.bytes_sent),
        human_bytes(figures.bytes_received)));
    output.event("rank", {{"rank", rank},
                          {"bytes_read", figures.bytes_read},
                          {"bytes_owned", figures.bytes_owned},
                          {"peak_rss_bytes", figures.peak_rss_bytes},
                          {"bytes_sent", figures.bytes_sent},
                          {"bytes_received", figures.bytes_received}});
  }
}

int RankSession::finish(int exit_code) {
  if (!mpi_) return exit_code;
  note_work("end", -1);
  const std::vector<int> codes = gather_values(*world_, exit_code);
  std::fflush(nullptr);
  note_communicator(nullptr);
  stall_watchdog_.reset();
  const Watchdog watchdog(lasts_longer_than(communicator_options_.timeout, "ending MPI"),
                          kExitEnvironment);
  world_.reset();
  mpi_.reset();
  return *std::max_element(codes.begin(), codes.end());
}

int RankSession::fail(const std::exception_ptr& error) {
  if (!mpi_) std::rethrow_exception(error);
  std::signal(SIGTERM, SIG_DFL);  // the cause is told here; being ended with the others is no news
  const CommandFailure failure = describe_failure(error);
  log(LogLevel::kError, "{}", failure.text);
  // MPI may not come back from an abort either, when shared memory is in disorder.
  const Watchdog watchdog(lasts_longer_than(kAbortPatience, "ending all ranks"),
                          exit_code_of(failure.code));
  if (world_) world_->abort(failure.text.c_str(), failure.code);
  std::fflush(nullptr);
  std::this_thread::sleep_for(kLastWords);
  MpiSession::abort_job(exit_code_of(failure.code));
}

int run_on_ranks(ParallelOptions& parallel, CommonOptions& common,
                 const std::function<int(RankSession& ranks)>& command) {
  RankSession ranks;
  try {
    ranks.start(parallel, common);
    return ranks.finish(command(ranks));
  } catch (...) {
    return ranks.fail(std::current_exception());
  }
}

}  // namespace gantry::cli
