#pragma once

#include <cstdint>

#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "loader/checkpoint.h"

namespace gantry GANTRY_API {

/// Reads a checkpoint's files from front to back with all threads and drops the bytes: the rate
/// that a load of the same files can be compared with, 1e9 bytes a second.
/// @param max_bytes stop after about so many
/// @return 0 where there is nothing to read
/// @throws Error kIo
double plain_read_gb_s(const Checkpoint& checkpoint, const Threads& threads, int64_t max_bytes);

}  // namespace gantry
