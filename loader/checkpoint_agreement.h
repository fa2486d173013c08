#pragma once

#include <vector>

#include "kernels/base/export.h"
#include "loader/checkpoint.h"
#include "parallel/startup_agreement.h"

namespace gantry GANTRY_API {

/// What ranks compare to be sure that they read the same checkpoint: names and sizes of its files,
/// the texts of config.json and its companions, and name, dtype, shape and place of every tensor.
/// Weights themselves are not read.
std::vector<AgreementItem> checkpoint_items(const Checkpoint& checkpoint);

}  // namespace gantry
