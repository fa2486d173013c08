#pragma once

// The ranks of a command: threads of this process, or processes that a launcher started.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/grouped_gemm/panel_gemm_kernels.h"
#include "parallel/mpi_session.h"
#include "parallel/rank_environment.h"
#include "parallel/startup_agreement.h"
#include "runtime/moe_model.h"
#include "tools/cli_common.h"

namespace gantry::cli {

/// Adds --ranks, --rank, --world-size and --collective-timeout.
void add_launch_options(CLI::App& app, LaunchOptions& options);

/// "fma" or "bf16", as GANTRY_AVX512_DOT spells it.
std::string flavour_name(Avx512Dot flavour);

/// Bytes and memory of one rank, for the table at the end.
struct RankFigures {
  int64_t bytes_read = 0;
  int64_t bytes_owned = 0;
  int64_t peak_rss_bytes = 0;
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
};

class Watchdog;

class RankSession {
 public:
  RankSession();
  ~RankSession();
  RankSession(const RankSession&) = delete;
  RankSession& operator=(const RankSession&) = delete;

  /// Finds out who this process is and, under a launcher, starts MPI. May set parallel.ep (all
  /// ranks, where neither size was given) and common (only rank 0 prints; threads are shared among
  /// the ranks of a host).
  /// @throws Error kInvalidArgument if launchers, flags and MPI disagree, or if the world is not
  ///         tp x ep
  void start(ParallelOptions& parallel, CommonOptions& common);

  /// Null where ranks are threads.
  [[nodiscard]] Communicator* world() const noexcept { return world_.get(); }
  [[nodiscard]] int rank() const noexcept { return world_ ? world_->rank() : 0; }
  /// Among the ranks of this host.
  [[nodiscard]] int local_rank() const noexcept { return local_rank_; }
  /// What the runtime needs to know of this.
  [[nodiscard]] RankSetup setup() const;

  /// The flavour of AVX-512 that all ranks use: rank 0's, as it is measured and the others' may be
  /// another one by chance. GANTRY_AVX512_DOT decides for the rank that has it.
  [[nodiscard]] Avx512Dot agreed_avx512_dot() const;

  /// Makes sure that all ranks run the same build with the same sizes on the same checkpoint, and
  /// the same `more` (a placement by its fingerprint, as paths say nothing).
  /// @throws Error kInvalidArgument naming the ranks and what differs
  void check_agreement(const ParallelOptions& parallel, const Checkpoint* checkpoint,
                       std::vector<AgreementItem> more) const;

  /// Everyone's figures, one line a rank; nothing where ranks are threads. Collective.
  void print_figures(const Output& output, const LoadStats& own) const;

  /// The end of a command that came to one: the highest of all ranks' exit codes.
  int finish(int exit_code);
  /// The end of a command that threw: logs it and takes all ranks down. Rethrows where ranks are
  /// threads.
  int fail(const std::exception_ptr& error);

 private:
  void share_cpus(CommonOptions& common) const;

  int local_rank_ = 0;
  std::unique_ptr<MpiSession> mpi_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Watchdog> stall_watchdog_;
  CommunicatorOptions communicator_options_;
};

/// Runs a command on its ranks; @return the exit code, the same on every rank.
int run_on_ranks(ParallelOptions& parallel, CommonOptions& common,
                 const std::function<int(RankSession& ranks)>& command);

}  // namespace gantry::cli
