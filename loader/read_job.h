#pragma once

#include "loader/checkpoint.h"
#include "loader/load_ledger.h"
#include "loader/load_plan.h"
#include "loader/load_report.h"
#include "loader/weight_loader.h"

namespace gantry {

/// Reads one job's rows chunk by chunk, checks them and copies them to where they go. Internal.
/// @return bytes read
int64_t run_read_job(const Checkpoint& checkpoint, const ReadJob& job, const LoadOptions& options,
                     LoadLedger& ledger, LoadReport& report);

/// Adds the finding for a NaN or infinity at element `index` of a tensor.
void report_non_finite(const Checkpoint& checkpoint, const TensorSource& source, int expert,
                       int64_t index, float value, LoadReport& report);

}  // namespace gantry
