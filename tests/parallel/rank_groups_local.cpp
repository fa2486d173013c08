#include "tests/parallel/rank_groups.h"

namespace gantry::test {

// One, and a prime that is no power of two among them.
std::vector<int> group_sizes() { return {1, 2, 3, 5}; }

void run_ranks(int num_ranks, const std::function<void(Communicator& world)>& body) {
  run_local_ranks(num_ranks, body);
}

}  // namespace gantry::test
