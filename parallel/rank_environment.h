#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// What one source says about this process' place among the ranks; -1: it does not say.
struct RankClaim {
  std::string source;  ///< "Open MPI (OMPI_COMM_WORLD_*)"
  int rank = -1;
  int size = -1;
  int local_rank = -1;  ///< among the ranks of this host
  int local_size = -1;
  bool sets_up_mpi = false;  ///< the launcher told MPI how to find the other ranks
};

/// This process' place among the ranks, as all sources together say.
struct RankEnvironment {
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = 1;
  std::vector<RankClaim> claims;  ///< whom that comes from; empty: no launcher

  [[nodiscard]] bool launched() const noexcept { return !claims.empty(); }
  /// Why MPI cannot join these ranks, and how to start them instead: none of their launchers set
  /// MPI up. Each process would start as a world of its own. Empty if one of them did, or for one
  /// rank.
  [[nodiscard]] std::string reason_not_joined() const;
  /// "rank 1 of 4, local rank 1 of 2 (Open MPI (OMPI_COMM_WORLD_*), PMIx (PMIX_RANK))"
  [[nodiscard]] std::string describe() const;
};

/// Returns the value of an environment variable, or null.
using EnvironmentLookup = std::function<const char*(const char* name)>;

/// What launchers say in environment variables:
///  - Open MPI's mpirun: OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
///  - PMIx servers: PMIX_RANK
///  - PMI servers (Hydra of MPICH and Intel MPI, srun --mpi=pmi2): PMI_RANK, PMI_SIZE; under mpirun
///    left out as Slurm's are
///  - srun: SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID. SLURM_STEP_NUM_TASKS is set for the
///    tasks of a step only, unlike SLURM_NTASKS, which a batch script has as well. Under mpirun
///    they describe mpirun's own daemons and are left out.
///  - torchrun: RANK and WORLD_SIZE (both, or neither counts), LOCAL_RANK, LOCAL_WORLD_SIZE
/// @throws Error kInvalidArgument for a value that is no number or out of range
std::vector<RankClaim> read_rank_claims(const EnvironmentLookup& lookup);

/// Puts claims together.
/// @throws Error kInvalidArgument naming two sources that disagree; if no source says how many
///         ranks there are; if a rank is not below its size
RankEnvironment combine_rank_claims(std::vector<RankClaim> claims);

}  // namespace gantry
