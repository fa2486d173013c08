#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/moe_model.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

/// How often each mutation is tried: GANTRY_TRIALS, or 1.
int trials();

/// What a mutation did to a checkpoint.
struct Mutated {
  bool applied = false;      ///< false: the checkpoint has nothing of the kind to damage
  std::string what;          ///< "swap experts 2 and 5 in ..."
  int layer = -1;            ///< with `experts`
  std::vector<int> experts;  ///< the only experts whose numbers changed; empty: not only experts
};

/// One way of damaging a checkpoint. `model` is the intact one.
struct Mutation {
  std::string name;
  std::function<Mutated(MutableCheckpoint&, const MoeModel& model, SeededRng&)> apply;
};

/// All ways that a file can be wrong without being unreadable.
const std::vector<Mutation>& mutations();

}  // namespace gantry::test
