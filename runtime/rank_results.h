#pragma once

// What ranks that are processes tell each other about a layer.

#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "loader/load_report.h"
#include "parallel/communicator.h"
#include "runtime/moe_model.h"

namespace gantry GANTRY_API {

/// Collective: adds to `report` the findings and warnings of other ranks that are not in `before`
/// (this rank's findings when the layer began), so that all ranks go on or stop together.
void share_findings(Communicator& world, const std::vector<Finding>& before, LoadReport& report);

/// Collective: fills in the results of the other ranks.
/// @param results      [world.size()]; results[world.rank()] is this rank's
/// @param sends_output this rank's `out` goes to the others, which leave it empty otherwise
void share_results(Communicator& world, bool sends_output, std::vector<RankResult>& results);

}  // namespace gantry
