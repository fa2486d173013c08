#pragma once

#include <functional>
#include <vector>

#include "parallel/communicator.h"

namespace gantry::test {

// What the conformance tests run on; each test program has one implementation of these.

/// The group sizes that can be had: one for each set of tests.
std::vector<int> group_sizes();

/// Runs `body` on a fresh group of `num_ranks`, one of group_sizes(). Ranks may be threads or
/// processes, so bodies share nothing but what they send each other.
void run_ranks(int num_ranks, const std::function<void(Communicator& world)>& body);

}  // namespace gantry::test
