#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/moe_model.h"
#include "tests/support/mutable_checkpoint.h"
#include "tests/support/mutations.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

/// One way of damaging a quantized checkpoint. `model` is the intact one.
struct QuantMutation {
  std::string name;
  /// Whether it must be noticed although no weight depends on it.
  bool always = false;
  std::function<Mutated(MutableCheckpoint&, const MoeModel& model, SeededRng&)> apply;
};

/// What exporters, converters and loaders do to quantized tensors: see README.md, "What is tested".
const std::vector<QuantMutation>& quant_mutations();

}  // namespace gantry::test
