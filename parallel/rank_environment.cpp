#include "parallel/rank_environment.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr int kMostRanks = 1 << 20;

// Names of the variables of one launcher; null: it has none for that.
struct Launcher {
  const char* name;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* local_size;
  bool needs_size;   // its rank variable alone proves nothing
  bool sets_up_mpi;  // what MPI needs to find the other ranks
};

constexpr Launcher kOpenMpi = {"Open MPI (OMPI_COMM_WORLD_*)",
                               "OMPI_COMM_WORLD_RANK",
                               "OMPI_COMM_WORLD_SIZE",
                               "OMPI_COMM_WORLD_LOCAL_RANK",
                               "OMPI_COMM_WORLD_LOCAL_SIZE",
                               true,
                               true};
constexpr Launcher kPmix = {
    "PMIx (PMIX_RANK)", "PMIX_RANK", nullptr, nullptr, nullptr, false, true};
constexpr Launcher kPmi = {
    "PMI (PMI_RANK, PMI_SIZE)", "PMI_RANK", "PMI_SIZE", nullptr, nullptr, true, true};
constexpr Launcher kSlurm = {"Slurm (SLURM_*)",
                             "SLURM_PROCID",
                             "SLURM_STEP_NUM_TASKS",
                             "SLURM_LOCALID",
                             nullptr,
                             true,
                             false};
constexpr Launcher kTorchrun = {"torchrun (RANK, WORLD_SIZE)",
                                "RANK",
                                "WORLD_SIZE",
                                "LOCAL_RANK",
                                "LOCAL_WORLD_SIZE",
                                true,
                                false};

// -1 if the variable is not set.
int read_number(const EnvironmentLookup& lookup, const char* name) {
  const char* value = name == nullptr ? nullptr : lookup(name);
  if (value == nullptr) return -1;
  const std::string_view text = value;
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  GANTRY_CHECK(error == std::errc() && end == text.data() + text.size() && number >= 0 &&
                   number < kMostRanks,
               ErrorCode::kInvalidArgument, "{}: expected a number from 0 to {}, found '{}'", name,
               kMostRanks - 1, text);
  return number;
}

void read_claim(const EnvironmentLookup& lookup, const Launcher& launcher,
                std::vector<RankClaim>& claims) {
  const bool has_rank = lookup(launcher.rank) != nullptr;
  const bool has_size = launcher.size != nullptr && lookup(launcher.size) != nullptr;
  if (!has_rank || (launcher.needs_size && !has_size)) return;
  claims.push_back({.source = launcher.name,
                    .rank = read_number(lookup, launcher.rank),
                    .size = read_number(lookup, launcher.size),
                    .local_rank = read_number(lookup, launcher.local_rank),
                    .local_size = read_number(lookup, launcher.local_size),
                    .sets_up_mpi = launcher.sets_up_mpi});
}

// Takes what one source says into what the others said, if it is the same.
void agree(std::string_view what, const RankClaim& claim, int value, const RankClaim*& teller,
           int& agreed) {
  if (value < 0) return;
  GANTRY_CHECK(teller == nullptr || agreed == value, ErrorCode::kInvalidArgument,
               "launchers disagree about the {}: {} says {}, {} says {}", what, teller->source,
               agreed, claim.source, value);
  if (teller == nullptr) teller = &claim;
  agreed = value;
}

}  // namespace

std::string RankEnvironment::reason_not_joined() const {
  const bool joined = std::any_of(claims.begin(), claims.end(),
                                  [](const RankClaim& claim) { return claim.sets_up_mpi; });
  if (joined || size <= 1) return {};
  return fmt::format(
      "{}: this launcher does not set up MPI, through which ranks find each other, so each of the "
      "{} processes would be a world of its own: start with mpirun -np {}, or under Slurm with "
      "srun "
      "--mpi=pmix (torchrun's variables may be set as well)",
      describe(), size, size);
}

std::string RankEnvironment::describe() const {
  std::string sources;
  for (const RankClaim& claim : claims)
    sources += fmt::format("{}{}", sources.empty() ? "" : ", ", claim.source);
  return fmt::format("rank {} of {}, local rank {} of {} ({})", rank, size, local_rank, local_size,
                     sources);
}

std::vector<RankClaim> read_rank_claims(const EnvironmentLookup& lookup) {
  std::vector<RankClaim> claims;
  read_claim(lookup, kOpenMpi, claims);
  const bool mpirun = !claims.empty();
  read_claim(lookup, kPmix, claims);
  if (!mpirun) {
    read_claim(lookup, kPmi, claims);
    read_claim(lookup, kSlurm, claims);
  }
  read_claim(lookup, kTorchrun, claims);
  return claims;
}

RankEnvironment combine_rank_claims(std::vector<RankClaim> claims) {
  RankEnvironment world;
  std::array<const RankClaim*, 4> tellers{};
  for (const RankClaim& claim : claims) {
    agree("rank", claim, claim.rank, tellers[0], world.rank);
    agree("number of ranks", claim, claim.size, tellers[1], world.size);
    agree("local rank", claim, claim.local_rank, tellers[2], world.local_rank);
    agree("number of local ranks", claim, claim.local_size, tellers[3], world.local_size);
  }
  GANTRY_CHECK(claims.empty() || tellers[1] != nullptr, ErrorCode::kInvalidArgument,
               "{} says that this is rank {}, but nothing says of how many",
               claims.empty() ? "" : claims[0].source, world.rank);
  GANTRY_CHECK(world.rank < world.size, ErrorCode::kInvalidArgument,
               "expected a rank below the number of ranks, found rank {} of {} ({})", world.rank,
               world.size, tellers[0] == nullptr ? "" : tellers[0]->source);
  GANTRY_CHECK(tellers[3] == nullptr || world.local_rank < world.local_size,
               ErrorCode::kInvalidArgument,
               "expected a local rank below the number of local ranks, found {} of {}",
               world.local_rank, world.local_size);
  world.claims = std::move(claims);
  return world;
}

}  // namespace gantry
