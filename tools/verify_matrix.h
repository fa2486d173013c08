#pragma once

#include "runtime/verification.h"
#include "tools/cli_common.h"

namespace gantry::cli {

/// Verifies every layout of ranks that the model allows (TP 2, EP 2, EP 3 round robin, EP 4,
/// TP 2 x EP 2, DP 2 x EP 2, and both with sequence parallel) with both exchanges and both orders
/// of sums, and prints the table. Ordered sums must have the bits of one EP rank. What is wrong is
/// added to model.report().
void verify_matrix(MoeModel& model, const Reference& reference, VerifySettings settings,
                   const Output& output);

}  // namespace gantry::cli
