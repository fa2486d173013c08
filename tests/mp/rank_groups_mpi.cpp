#include "parallel/mpi_session.h"
#include "tests/parallel/rank_groups.h"

// Ranks are the processes that mpirun started. Every rank runs every test.

namespace gantry::test {

std::vector<int> group_sizes() { return {MpiSession().size()}; }

void run_ranks(int /*num_ranks*/, const std::function<void(Communicator& world)>& body) {
  const auto world = MpiSession().make_world({.timeout = std::chrono::seconds(30)});
  body(*world);
}

}  // namespace gantry::test
